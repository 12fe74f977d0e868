"""Shadows: models that compute a share of the requests a second time, to be compared with the answers.

A request is sampled when it comes, and offered to its shadow once it has its answer, which nothing here can hold up,
change or fail. What is offered waits in a bounded queue, and is computed a few images at a time while the models
involved have no work to do.
"""

import asyncio
import logging
import random
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Sequence
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np

from fuseline.serve.batching.admission import Reservation
from fuseline.serve.batching.batcher import BatchedRows, Row
from fuseline.serve.batching.requests import BULK, Caller
from fuseline.serve.errors import (
    BackendError,
    BackendLostError,
    DeadlineError,
    InputError,
    OverloadedError,
    ShuttingDownError,
    UnknownModelError,
    log_once,
)
from fuseline.serve.metrics.routing_metrics import ShadowMetrics
from fuseline.serve.model import Model
from fuseline.serve.repository import Repository
from fuseline.serve.route_flags import Shadow
from fuseline.serve.routing.comparison import Comparer, takes_same_rows, why_incomparable
from fuseline.serve.routing.routes import Routes

SHADOW_CALLER = Caller("shadow", priority=BULK)
"""Caller of what shadows compute: others go first in the queue of a model that answers requests too."""

PATIENCE_S = 2.0
"""Seconds that a sampled request waits for its models to be free; it is dropped then."""

LOOK_AGAIN_S = 0.01
"""Seconds after which models that were busy are looked at again."""

_ROWS_AT_ONCE_GPU = 8

_NO_ROOM = (OverloadedError, DeadlineError, ShuttingDownError, BackendLostError)

_log = logging.getLogger(__name__)

Decode = Callable[[Caller], Coroutine[Any, Any, tuple[list[Row], Reservation]]]
"""Decodes a request's images for the shadow on behalf of a caller; see `fuseline.serve.services.inference.Decode`."""


class Sample:
    """One request that a shadow is to compute too, and what it takes to do so."""

    __slots__ = ("_shadows", "answer", "answering", "decode", "labels", "model", "rows", "until")

    def __init__(self, shadows: "Shadows", answering: Model, model: Model, labels: tuple[str, str, str]) -> None:
        self._shadows = shadows
        self.answering = answering
        """Model that answers."""
        self.model = model
        """Shadow."""
        self.labels = labels
        self.rows: Sequence[Row] | None = None
        """Rows that the shadow takes; None: `decode` makes them, or they are yet to be made for the answer."""
        self.decode: Decode | None = None
        self.answer: BatchedRows | None = None
        self.until = 0.0

    def take(self, rows: Sequence[Row]) -> None:
        """Take the rows that the answer is computed of, which the shadow computes too if it takes the same."""
        if self.decode is None and self.rows is None:
            self.rows = rows

    def answered(self, answer: BatchedRows) -> None:
        """Have the shadow compute the request, whose `answer` is on its way."""
        self.answer = answer
        self._shadows.offer(self)


class Shadows:
    """Samples requests, and has shadows compute them. Everything happens on one event loop.

    At most `max_rows` images wait or are computed at a time; a request that finds no room is dropped, as is one whose
    models are busy for `PATIENCE_S`. Each outcome is counted once.
    """

    def __init__(
        self,
        shadows: Iterable[Shadow],
        repository: Repository,
        metrics: ShadowMetrics,
        *,
        max_rows: int,
        draw: Callable[[], float] = random.random,
    ) -> None:
        """`draw` returns a number from 0 to below 1; a request is sampled where it is below the share."""
        self._shadows = {shadow.name: shadow for shadow in shadows}
        self._repository = repository
        self._metrics = metrics
        self._max_rows = max_rows
        self._draw = draw
        self._queue: deque[Sample] = deque()
        self._rows = 0
        self._running: asyncio.Task[None] | None = None
        self._stopped = False
        # What is known of an answering model and its shadow, as long as both are there.
        self._pairs: WeakKeyDictionary[Model, WeakKeyDictionary[Model, _Pair]] = WeakKeyDictionary()

    def check(self, routes: Routes, *, models_come: bool = False) -> None:
        """Raise `InputError` if a shadow, or what it shadows, is not served, or their answers can't be compared.

        Where `models_come` while the server runs, one that is not served yet is no error.
        """
        for shadow in self._shadows.values():
            flag = f"--shadow {shadow.name}={shadow.target}@{shadow.share:.4g}"
            try:
                answering = self._answering(routes, shadow.name)
                model = self._repository.find(*shadow.target)
            except UnknownModelError as error:
                if not models_come:
                    raise InputError(f"{flag}: {error}") from None
                _log.warning("%s: %s; requests are compared once it is served", flag, error)
                continue
            for its in answering:
                if (why := why_incomparable(its.manifest, model.manifest)) is not None:
                    raise InputError(f"{flag}: the answers can't be compared: {why}")
            if all(its is model for its in answering) and not models_come:
                raise InputError(
                    f"{flag}: {model.name}:{model.version} answers these requests itself; name another model or version"
                )
            if not all(takes_same_rows(its.manifest, model.manifest) for its in answering):
                _log.warning(
                    "%s: its input, or how pictures become it, differs; encoded pictures are decoded a second time for "
                    "it, other requests are not compared unless they have its size",
                    flag,
                )

    @staticmethod
    def _answering(routes: Routes, name: str) -> list[Model]:
        """Return the models that requests to `name` without a version are given to. Raises `UnknownModelError`."""
        return routes.served(name) if name in routes.aliases else [routes.first(name)]

    def sample(self, name: str, answering: Model) -> Sample | None:
        """Return the sample if this request to `name` is one that its shadow computes too; None: it is not.

        `answering` is the model that answers it.
        """
        shadow = self._shadows.get(name)
        if shadow is None or self._stopped or self._draw() >= shadow.share:
            return None
        try:
            model = self._repository.find(*shadow.target)
        except UnknownModelError:
            self._metrics.count_outcome((name, *shadow.target), "dropped")
            return None
        if model is answering:
            return None
        return Sample(self, answering, model, (name, model.name, model.version))

    def prepare(self, sample: Sample, make: Callable[[Model], list[Row] | Decode]) -> bool:
        """See what `sample` needs beside the rows of the answer; return False if the shadow can't take the request.

        `make` returns, for another model, the request's rows or what decodes them, and raises `InputError`.
        """
        pair = self._pair(sample)
        if pair.comparer is None:
            self._metrics.count_outcome(sample.labels, "unfit")
            return False
        if pair.takes_same_rows:
            return True
        try:
            made = make(sample.model)
        except InputError:
            self._metrics.count_outcome(sample.labels, "unfit")
            return False
        except Exception as error:  # noqa: BLE001 a shadow must not fail the request
            self._fail(sample, error)
            return False
        if isinstance(made, list):
            sample.rows = made
        else:
            sample.decode = made
        return True

    def offer(self, sample: Sample) -> None:
        """Have an answered `sample` computed once there is time, or drop it."""
        assert sample.answer is not None
        rows = len(sample.answer.logits)
        if self._stopped or self._rows + rows > self._max_rows:
            self._metrics.count_outcome(sample.labels, "dropped")
            return
        loop = asyncio.get_running_loop()
        sample.until = loop.time() + PATIENCE_S
        self._queue.append(sample)
        self._rows += rows
        if self._running is None:
            self._running = loop.create_task(self._run())

    async def stop(self) -> None:
        """Sample nothing from now on, give up what waits and what is computed, and return once nothing is left."""
        self._stopped = True
        if self._running is not None:
            self._running.cancel()
            await asyncio.gather(self._running, return_exceptions=True)
        while self._queue:
            sample = self._queue.popleft()
            assert sample.answer is not None
            self._rows -= len(sample.answer.logits)
            self._metrics.count_outcome(sample.labels, "dropped")

    async def _run(self) -> None:
        try:
            while self._queue:
                sample = self._queue.popleft()
                assert sample.answer is not None
                outcome = "dropped"
                try:
                    outcome = await self._outcome(sample)
                except Exception as error:  # noqa: BLE001 a shadow that fails is counted, and the next one is computed
                    log_once(error)
                    outcome = "failed"
                finally:
                    self._rows -= len(sample.answer.logits)
                    self._metrics.count_outcome(sample.labels, outcome)
        finally:
            self._running = None

    async def _outcome(self, sample: Sample) -> str:
        """Compute `sample`, compare it, and return what became of it."""
        try:
            batched = await self._computed(sample)
        except (*_NO_ROOM, UnknownModelError):
            return "dropped"
        except InputError:
            return "unfit"
        assert sample.answer is not None
        logits = np.concatenate([part.logits for part in batched])
        if not np.isfinite(logits).all():
            return "failed"
        comparer = self._pair(sample).comparer
        assert comparer is not None
        compared = comparer.compare(sample.answer.logits, logits)
        self._metrics.count_comparison(
            sample.labels,
            agreeing=compared.agreeing,
            differing=len(logits) - compared.agreeing,
            difference=compared.difference,
            seconds=sum(part.queue_ms + part.compute_ms for part in batched) / 1000,
            answer_s=(sample.answer.queue_ms + sample.answer.compute_ms) / 1000,
        )
        return "agrees" if compared.agreeing == len(logits) else "differs"

    async def _computed(self, sample: Sample) -> list[BatchedRows]:
        rows = sample.rows
        if sample.decode is not None:
            await self._until_free(sample)
            rows, reservation = await sample.decode(SHADOW_CALLER)
            # Its rows are sent a few at a time, each of which is admitted on its own.
            reservation.release()
        if rows is None:
            raise BackendError(f"a request to {sample.labels[0]} has an answer and no rows")
        step = 1 if sample.model.backend.device == "CPU" else _ROWS_AT_ONCE_GPU
        batched = []
        for first in range(0, len(rows), step):
            await self._until_free(sample)
            # A model that was replaced meanwhile takes nothing new.
            if self._repository.find(sample.model.name, sample.model.version) is not sample.model:
                raise ShuttingDownError(f"{sample.model.name}:{sample.model.version} was replaced")
            batched.append(await sample.model.batcher.submit(rows[first : first + step], caller=SHADOW_CALLER))
        return batched

    async def _until_free(self, sample: Sample) -> None:
        """Return once no model has a full batch waiting. Raises `OverloadedError` after `sample.until`."""
        loop = asyncio.get_running_loop()
        while any(model.batcher.backpressure is not None for model in self._repository):
            if loop.time() >= sample.until:
                raise OverloadedError("the models are busy")
            await asyncio.sleep(LOOK_AGAIN_S)

    def _pair(self, sample: Sample) -> "_Pair":
        """Return what is known of the two models; that they can't be compared is logged once."""
        pairs = self._pairs.setdefault(sample.answering, WeakKeyDictionary())
        if (pair := pairs.get(sample.model)) is None:
            answering, shadow = sample.answering.manifest, sample.model.manifest
            if (why := why_incomparable(answering, shadow)) is not None:
                _log.warning("shadow of %s: the answers can't be compared: %s", sample.labels[0], why)
            comparer = Comparer(answering, shadow) if why is None else None
            pairs[sample.model] = pair = _Pair(comparer, takes_same_rows(answering, shadow))
        return pair

    def _fail(self, sample: Sample, error: Exception) -> None:
        log_once(error)
        self._metrics.count_outcome(sample.labels, "failed")


class _Pair(NamedTuple):
    """A model that answers, and its shadow."""

    comparer: Comparer | None
    """Compares their answers; None: they can't be compared."""
    takes_same_rows: bool
