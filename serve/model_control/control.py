"""What the services ask when a client wants models loaded, unloaded or listed."""

from collections.abc import Mapping
from enum import StrEnum
from typing import NamedTuple, Protocol


class ModelState(StrEnum):
    """State of a model's version, as Triton names it."""

    READY = "READY"
    LOADING = "LOADING"
    UNLOADING = "UNLOADING"
    UNAVAILABLE = "UNAVAILABLE"


class IndexEntry(NamedTuple):
    """One line of the repository's index."""

    name: str
    version: str
    """Version; empty for a model none of whose versions was ever asked for."""
    state: ModelState
    reason: str
    """Reason for the state, for people; empty where the state says it all."""


class ModelControl(Protocol):
    """Loads and unloads models, in this process or in another one."""

    async def load(self, name: str, parameters: Mapping[str, str]) -> None:
        """Read the model called `name` anew and return once requests get its versions of now.

        Whoever stops waiting stops nothing: a load that has begun comes to its end.

        `parameters` are those of the request, which may override nothing.

        Raises:
            ModelControlError: models can't be loaded by request here, or a version was refused; what was served before
                is served still.
            RequestError: `parameters` has what can't be done.
            UnknownModelError: the repository has no such model.
        """
        ...

    async def unload(self, name: str, *, unload_dependents: bool = False) -> None:
        """Serve no version of `name` any more, and return once none has a request left.

        No model depends on another here, so `unload_dependents` changes nothing.

        Raises:
            ModelControlError: models can't be unloaded by request here.
            UnknownModelError: the repository has no such model.
        """
        ...

    async def index(self, *, ready: bool) -> list[IndexEntry]:
        """Return every version that is known, by name and version; with `ready`, only those that take requests."""
        ...
