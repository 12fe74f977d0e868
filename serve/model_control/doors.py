"""The processes that take requests, as seen by what loads and unloads models."""

from collections.abc import Sequence
from typing import Protocol

from fuseline.serve.model import Model


class Doors(Protocol):
    """All processes that take requests for the models of this one. `fuseline.serve.repository.Repository` is the only
    one where a single process does everything.

    A model is swapped in three steps: `publish` with its successor in its place; `retire`; then its batcher drains and
    its backend closes. A request that found the model before is answered by it.
    """

    async def publish(self, served: Sequence[Model]) -> None:
        """Return once every door sends new requests to `served` and to no other model. Models may be new or stay."""
        ...

    async def retire(self, model: Model) -> None:
        """Return once no door has or will have a request for `model`, which is published no more."""
        ...
