"""The control of a server whose models stay as they are."""

from collections.abc import Mapping

from fuseline.serve.errors import ModelControlError
from fuseline.serve.model_control.control import IndexEntry, ModelState
from fuseline.serve.repository import Repository


class FixedModels:
    """A `ModelControl` that loads and unloads nothing."""

    def __init__(self, repository: Repository) -> None:
        self._repository = repository

    async def load(self, name: str, parameters: Mapping[str, str]) -> None:  # noqa: ARG002
        """Raise `ModelControlError`."""
        raise refused_by_mode("none")

    async def unload(self, name: str, *, unload_dependents: bool = False) -> None:  # noqa: ARG002
        """Raise `ModelControlError`."""
        raise refused_by_mode("none")

    async def index(self, *, ready: bool) -> list[IndexEntry]:  # noqa: ARG002
        """Return the served models, all of which are ready."""
        return [IndexEntry(model.name, model.version, ModelState.READY, "") for model in self._repository]


def refused_by_mode(mode: str) -> ModelControlError:
    """Return the error for a load or unload by request in a `mode` that forbids it, worded as Triton's."""
    why = "if polling is enabled" if mode == "poll" else "in the mode none"
    return ModelControlError(
        f"explicit model load / unload is not allowed {why}; the server takes it with --model-control-mode explicit"
    )
