"""A worker's control of the models, which the backend process loads and unloads."""

import json
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any

from fuseline.serve.errors import BackendLostError, RequestError, UnknownModelError
from fuseline.serve.model import Model
from fuseline.serve.model_control.control import IndexEntry, ModelState
from fuseline.serve.workers.error_text import error_from_text

_MOST_NAME_LENGTH = 255
_MOST_PARAMETER_BYTES = 2**20

Ask = Callable[..., Awaitable[dict[str, Any]]]
"""Sends the supervisor a message of a kind and returns its answer."""


class RemoteModelControl:
    """A `ModelControl` that asks the supervisor, which asks the backend process. Errors come back as they are there."""

    def __init__(self, ask: Ask, models: Callable[[], Iterable[Model]]) -> None:
        """`models` returns those that this worker knows at the time."""
        self._ask = ask
        self._models = models

    async def load(self, name: str, parameters: Mapping[str, str]) -> None:
        """See `ModelControl.load`.

        Raises:
            BackendLostError: the backend process has ended; whether the model is loaded is known once it is back.
        """
        _check_name(name)
        # A message to the supervisor must not be of any length.
        if (size := len(json.dumps(dict(parameters)))) > _MOST_PARAMETER_BYTES:
            raise RequestError(
                f"the parameters of the load have {size} bytes, at most {_MOST_PARAMETER_BYTES} are taken; send none"
            )
        await self._asked(action="load", name=name, parameters=dict(parameters))

    async def unload(self, name: str, *, unload_dependents: bool = False) -> None:
        """See `ModelControl.unload`. Raises `BackendLostError` as `load` does."""
        _check_name(name)
        await self._asked(action="unload", name=name, unload_dependents=unload_dependents)

    async def index(self, *, ready: bool) -> list[IndexEntry]:
        """See `ModelControl.index`. While there is no backend process, nothing is ready."""
        try:
            answer = await self._asked(action="index", ready=ready)
        except BackendLostError:
            why = "the process that has it has ended and is being started again"
            lost = [IndexEntry(its.name, its.version, ModelState.UNAVAILABLE, why) for its in self._models()]
            return [] if ready else lost
        return [IndexEntry(name, version, ModelState(state), why) for name, version, state, why in answer["entries"]]

    async def _asked(self, **question: Any) -> dict[str, Any]:
        answer = await self._ask("control", **question)
        if answer["error"] is not None:
            raise error_from_text(answer["error"])
        return answer


def _check_name(name: str) -> None:
    if len(name) > _MOST_NAME_LENGTH:
        raise UnknownModelError(
            f"a model's name has at most {_MOST_NAME_LENGTH} characters, this one has {len(name)}; "
            "the repository's index tells the names"
        )
