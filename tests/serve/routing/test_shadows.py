"""Shadows: what they compare, and that they stay behind everything else."""

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from fuseline.serve.batching.batcher import BatchedRows, Row
from fuseline.serve.batching.requests import ANYONE, Caller
from fuseline.serve.errors import BackendError, ImageError, InputError, OverloadedError, RequestError
from fuseline.serve.metrics.routing_metrics import ShadowMetrics
from fuseline.serve.model import Model
from fuseline.serve.repository import Repository
from fuseline.serve.route_flags import alias_from_flag, shadow_from_flag
from fuseline.serve.routing.routes import Routes
from fuseline.serve.routing.shadows import PATIENCE_S, SHADOW_CALLER, Sample, Shadows
from tests.fakes.colours import expected_logits, noise
from tests.fakes.virtual_time import VirtualLoop, run_in_virtual_time

Load = Callable[[str], Model]


class StandIn:
    """A model whose batcher answers `logits`, when the test lets it: of the device, this is all that shadows see."""

    def __init__(self, like: Model, name: str, version: str = "1") -> None:
        self.name, self.version, self.backend = name, version, like.backend
        self.manifest = like.manifest.model_copy(update={"name": name, "version": version})
        self.batcher = self
        self.backpressure: str | None = None
        self.submitted: list[int] = []
        """Number of rows of each request so far."""
        self.callers: set[Caller] = set()
        self.pending: list[asyncio.Future[BatchedRows]] = []
        self.error: Exception | None = None

    def submit(self, rows: Sequence[Row], *, caller: Caller = ANYONE, **_: Any) -> asyncio.Future[BatchedRows]:
        if self.error is not None:
            raise self.error
        self.submitted.append(len(rows))
        self.callers.add(caller)
        self.pending.append(asyncio.get_running_loop().create_future())
        return self.pending[-1]

    def settle(self, *, seconds: float = 0.0) -> None:
        """Answer every pending row with zeros; it took so long."""
        for rows, future in zip(self.submitted[-len(self.pending) :], self.pending, strict=True):
            if not future.done():
                future.set_result(answer(np.zeros((rows, 4), np.float32), compute_ms=1000 * seconds))
        self.pending.clear()


class Scene:
    """One shadow of the requests to a model, with stand-ins for both."""

    def __init__(self, like: Model, *, share: float = 1.0, max_rows: int = 8, draws: Sequence[float] = ()) -> None:
        self.answering, self.shadow = StandIn(like, "main"), StandIn(like, "shadow", "2")
        self.repository = Repository([self.answering, self.shadow])  # type: ignore[list-item]
        self.registry = CollectorRegistry()
        self.shadows = Shadows(
            [shadow_from_flag(f"main=shadow:2@{share}")],
            self.repository,
            ShadowMetrics(self.registry),
            max_rows=max_rows,
            draw=iter(draws).__next__ if draws else lambda: 0.0,
        )

    def ask(self, rows: int = 1, *, logits: np.ndarray | None = None) -> Sample | None:
        """Have a request come and be answered; return its sample."""
        sample = self.shadows.sample("main", self.answering)  # type: ignore[arg-type]
        if sample is not None and self.shadows.prepare(sample, no_rows):
            sample.take(list(noise(rows)))
            sample.answered(answer(np.zeros((rows, 4), np.float32) if logits is None else logits, compute_ms=4.0))
        return sample

    def count(self, outcome: str) -> float:
        """How many requests had this outcome."""
        labels = {"shadowed": "main", "model": "shadow", "version": "2", "outcome": outcome}
        return self.registry.get_sample_value("fuseline_shadow_requests_total", labels) or 0.0


def answer(logits: np.ndarray, *, compute_ms: float = 0.0) -> BatchedRows:
    return BatchedRows(logits, 0.0, compute_ms, len(logits), logits, 0)


def no_rows(_: Model) -> list[Row]:
    raise AssertionError("both models take the same rows")


async def turns() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


@pytest.fixture
def stable(load: Load) -> Model:
    return load("stable")


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110 what is waited for lies in a batcher, which tells no one
            await asyncio.sleep(0)


async def test_answers_of_two_real_models_are_compared_image_by_image(load: Load) -> None:
    stable, canary = load("stable"), load("canary")
    registry = CollectorRegistry()
    shadows = Shadows(
        [shadow_from_flag("stable=canary:4@1")], Repository([stable, canary]), ShadowMetrics(registry), max_rows=64
    )
    pixels = noise(40)
    sample = shadows.sample("stable", stable)
    assert sample is not None
    assert shadows.prepare(sample, no_rows)
    sample.take(list(pixels))
    answered = expected_logits(pixels).astype(np.float32)
    more_green = answered + np.array([0, 0.5, 0, 0], np.float32)
    sample.answered(answer(answered))
    labels = {"shadowed": "stable", "model": "canary", "version": "4"}

    def value(name: str, **more: str) -> float | None:
        return registry.get_sample_value(name, labels | more)

    await until(lambda: value("fuseline_shadow_requests_total", outcome="differs") == 1)
    agreeing = int((answered.argmax(axis=1) == more_green.argmax(axis=1)).sum())
    assert 0 < agreeing < 40
    assert value("fuseline_shadow_images_total", outcome="agrees") == agreeing
    assert value("fuseline_shadow_images_total", outcome="differs") == 40 - agreeing
    assert value("fuseline_shadow_logit_difference_sum") == pytest.approx(0.5, abs=1e-4)
    assert value("fuseline_shadow_seconds_count", by="shadow") == 1
    assert value("fuseline_shadow_seconds_count", by="answer") == 1
    await shadows.stop()


def test_an_outcome_and_both_times_are_counted_once_for_each_sampled_request(stable: Model) -> None:
    async def main(_: VirtualLoop) -> None:
        scene = Scene(stable, share=0.3, draws=[0.29, 0.3, 0.0])
        assert [scene.ask() is not None for _ in range(3)] == [True, False, True]
        for _ in range(2):
            await turns()
            scene.shadow.settle(seconds=0.5)
        await turns()
        assert scene.count("agrees") == 2
        for by, seconds in (("shadow", 1.0), ("answer", 0.008)):
            labels = {"shadowed": "main", "model": "shadow", "version": "2", "by": by}
            assert scene.registry.get_sample_value("fuseline_shadow_seconds_sum", labels) == pytest.approx(seconds)
        assert scene.answering.submitted == []

    run_in_virtual_time(main)


def test_a_shadow_computes_one_image_at_a_time_for_the_lowest_caller(stable: Model) -> None:
    async def main(_: VirtualLoop) -> None:
        scene = Scene(stable)
        scene.ask(3)
        for images in (1, 2, 3):
            await turns()
            assert scene.shadow.submitted == [1] * images
            scene.shadow.settle()
        await turns()
        assert scene.count("agrees") == 1
        assert scene.shadow.callers == {SHADOW_CALLER}
        assert SHADOW_CALLER.priority > ANYONE.priority

    run_in_virtual_time(main)


@pytest.mark.parametrize("busy", ["answering", "shadow"])
def test_a_shadow_waits_while_a_model_has_work_and_is_dropped_when_that_takes_long(stable: Model, busy: str) -> None:
    async def main(_: VirtualLoop) -> None:
        scene = Scene(stable)
        model = getattr(scene, busy)
        model.backpressure = "rows"
        scene.ask()
        await asyncio.sleep(PATIENCE_S / 2)
        assert scene.shadow.submitted == []
        model.backpressure = None
        await asyncio.sleep(PATIENCE_S / 4)
        assert scene.shadow.submitted == [1]
        scene.shadow.settle()
        await turns()
        assert scene.count("agrees") == 1
        model.backpressure = "time"
        scene.ask()
        await asyncio.sleep(0.95 * PATIENCE_S)
        assert scene.count("dropped") == 0
        await asyncio.sleep(0.1 * PATIENCE_S)
        assert scene.count("dropped") == 1
        assert scene.shadow.submitted == [1]

    run_in_virtual_time(main)


def test_what_finds_no_room_is_dropped_at_once_and_room_comes_back(stable: Model) -> None:
    async def main(_: VirtualLoop) -> None:
        scene = Scene(stable, max_rows=4)
        for rows in (2, 2, 1, 5):
            scene.ask(rows)
        assert scene.count("dropped") == 2
        for _ in range(4):
            await turns()
            scene.shadow.settle()
        await turns()
        assert scene.count("agrees") == 2
        scene.ask(4)
        assert scene.count("dropped") == 2
        await scene.shadows.stop()

    run_in_virtual_time(main)


@pytest.mark.parametrize(
    ("error", "outcome"),
    [(OverloadedError("full"), "dropped"), (BackendError("broken"), "failed"), (ZeroDivisionError(), "failed")],
)
def test_a_shadow_that_fails_is_counted_and_the_next_request_is_compared(
    stable: Model, error: Exception, outcome: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def main(_: VirtualLoop) -> None:
        scene = Scene(stable)
        scene.shadow.error = error
        scene.ask()
        await turns()
        assert scene.count(outcome) == 1
        scene.shadow.error = None
        scene.ask()
        await turns()
        scene.shadow.settle()
        await turns()
        assert scene.count("agrees") == 1

    with caplog.at_level(logging.CRITICAL):
        run_in_virtual_time(main)


def test_logits_that_are_not_finite_are_a_failure_of_the_shadow(stable: Model) -> None:
    async def main(_: VirtualLoop) -> None:
        scene = Scene(stable)
        scene.ask()
        await turns()
        scene.shadow.pending.pop().set_result(answer(np.full((1, 4), np.nan, np.float32)))
        await turns()
        assert scene.count("failed") == 1

    run_in_virtual_time(main)


def test_stopping_gives_up_what_waits_and_what_is_computed_and_samples_nothing_more(stable: Model) -> None:
    async def main(_: VirtualLoop) -> None:
        scene = Scene(stable)
        for _ in range(3):
            scene.ask()
        late = scene.shadows.sample("main", scene.answering)  # type: ignore[arg-type]
        await turns()
        (computing,) = scene.shadow.pending
        await scene.shadows.stop()
        assert computing.cancelled()
        assert scene.count("dropped") == 3
        assert scene.ask() is None
        assert late is not None
        late.take(list(noise(1)))
        late.answered(answer(np.zeros((1, 4), np.float32)))
        assert scene.count("dropped") == 4
        assert asyncio.all_tasks() == {asyncio.current_task()}
        await scene.shadows.stop()

    run_in_virtual_time(main)


def test_a_shadow_that_is_replaced_while_a_request_waits_is_asked_nothing_more(stable: Model) -> None:
    async def main(_: VirtualLoop) -> None:
        scene = Scene(stable)
        scene.ask(2)
        await turns()
        successor = StandIn(stable, "shadow", "2")
        scene.repository.__init__([scene.answering, successor])  # type: ignore[misc]
        scene.shadow.settle()
        await turns()
        assert scene.shadow.submitted == [1]
        assert scene.count("dropped") == 1
        scene.repository.__init__([scene.answering])  # type: ignore[misc]
        assert scene.ask() is None

    run_in_virtual_time(main)


def test_what_the_shadow_itself_answers_is_not_computed_twice(stable: Model) -> None:
    async def main(_: VirtualLoop) -> None:
        scene = Scene(stable)
        assert scene.shadows.sample("main", scene.shadow) is None  # type: ignore[arg-type]
        assert scene.shadows.sample("shadow", scene.shadow) is None  # type: ignore[arg-type]

    run_in_virtual_time(main)


async def test_a_shadow_that_takes_other_rows_has_them_made_anew(load: Load) -> None:
    stable, floats = load("stable"), load("floats")
    registry = CollectorRegistry()
    shadows = Shadows(
        [shadow_from_flag("stable=floats@1")], Repository([stable, floats]), ShadowMetrics(registry), max_rows=8
    )
    pixels = noise(2)
    labels = {"shadowed": "stable", "model": "floats", "version": "1"}

    def count(outcome: str) -> float:
        name = "fuseline_shadow_requests_total"
        return registry.get_sample_value(name, labels | {"outcome": outcome}) or 0.0

    def ask(make: Callable[[Model], Any]) -> bool:
        sample = shadows.sample("stable", stable)
        assert sample is not None
        if not shadows.prepare(sample, make):
            return False
        sample.take(list(pixels))
        sample.answered(answer(expected_logits(pixels).astype(np.float32)))
        return True

    mean, std = np.array(floats.manifest.normalization.mean), np.array(floats.manifest.normalization.std)
    rows = ((pixels / 255 - mean) / std).transpose(0, 3, 1, 2).astype(np.float32)
    assert ask(lambda _: list(rows))
    await until(lambda: count("agrees") == 1)
    released = []

    class Reservation:
        def release(self) -> None:
            released.append(True)

    async def decode(caller: Caller) -> tuple[list[Row], Any]:
        assert caller is SHADOW_CALLER
        return list(rows), Reservation()

    assert ask(lambda _: decode)
    await until(lambda: count("agrees") == 2)
    assert released == [True]

    async def cannot(_: Caller) -> tuple[list[Row], Any]:
        raise ImageError("too large for the shadow")

    assert ask(lambda _: cannot)
    await until(lambda: count("unfit") == 1)

    def refuse(_: Model) -> list[Row]:
        raise RequestError("192 raw bytes")

    assert not ask(refuse)
    assert count("unfit") == 2
    await shadows.stop()


@pytest.mark.parametrize(
    ("shadow", "reason"),
    [
        ("missing@0.5", "there is no model 'missing' here"),
        ("stable:9@0.5", "--shadow stable=stable:9@0.5: there is no version '9' of stable here"),
        ("best=canary@0.5", "--shadow best=canary@0.5: there is no model 'best' here; served: .*; aliases: prod"),
        ("stable@0.5", "stable:3 answers these requests itself; name another model or version"),
        ("stable=cats@0.5", "the answers can't be compared: cats:1 and stable:3 have no label in common"),
    ],
)
def test_a_shadow_that_does_not_fit_the_models_is_refused_at_the_start(load: Load, shadow: str, reason: str) -> None:
    stable = load("stable")
    cats = StandIn(stable, "cats")
    cats.manifest = cats.manifest.model_copy(update={"labels": ("cat", "lion", "tiger", "lynx")})
    repository = Repository([stable, load("canary"), cats])  # type: ignore[list-item]
    routes = Routes(repository, [alias_from_flag("prod=stable:3@0.5,canary:4@0.5")])

    def check(text: str) -> None:
        Shadows([shadow_from_flag(text)], repository, ShadowMetrics(CollectorRegistry()), max_rows=8).check(routes)

    # What the shadow answers itself is not compared; the rest of the split is.
    check("prod=canary:4@0.05")
    with pytest.raises(InputError, match=reason):
        check(shadow)


async def test_a_shadow_that_came_and_cannot_be_compared_is_asked_nothing_and_logged_once(
    stable: Model, caplog: pytest.LogCaptureFixture
) -> None:
    scene = Scene(stable)
    scene.shadow.manifest = scene.shadow.manifest.model_copy(update={"labels": ("cat", "lion", "tiger", "lynx")})
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            scene.ask()
    assert scene.count("unfit") == 3
    assert scene.shadow.submitted == []
    assert len(caplog.records) == 1
    assert "have no label in common" in caplog.text
