"""The weights of a checkpoint, as they are in its file."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from fuseline.export.checkpoint.pickled_tensors import UnusableTensor
from fuseline.export.checkpoint.training_parts import is_pretraining
from fuseline.export.checkpoint.wrapper_prefixes import shapes_of


@dataclass(slots=True)
class Weights:
    """The weights of a checkpoint, and where they were found."""

    named: dict[Any, Any]
    """The state dict as it is in the file: Tensor or UnusableTensor, and whatever else stands in it."""
    levels: list[Mapping[Any, Any]]
    """The nested contents from the root to the state dict, which is the last."""
    notes: list[str]
    layer_settings: dict[str, dict[str, Any]] = field(default_factory=dict)
    """`ModuleState.layer_settings` of a module that was pickled whole."""
    module_classes: set[str] = field(default_factory=set)
    """Names of the classes of the modules whose attributes were read."""
    are_ema: bool = False
    """Whether the weights are averaged ones."""
    are_taken: bool = False
    """Whether --take chose the weights."""

    @property
    def tensors(self) -> dict[Any, Any]:
        """The tensors of `named`."""
        return {name: value for name, value in self.named.items() if is_tensor(value)}

    @property
    def of_file(self) -> dict[Any, Any]:
        """All tensors on the level of `tensors`, unless a flag chose `tensors` among them."""
        if self.are_ema or self.are_taken:
            return self.tensors
        return {name: value for name, value in self.levels[-1].items() if is_tensor(value)}

    def keep_behind(self, prefix: str, names: Iterable[str]) -> None:
        """Keep only the weights `names`, which begin with `prefix`, and remove the prefix."""
        self.named = {name.removeprefix(prefix): self.named[name] for name in names}
        self.layer_settings = {
            name.removeprefix(prefix): settings
            for name, settings in self.layer_settings.items()
            if name.startswith(prefix)
        }

    @property
    def are_of_pretraining(self) -> bool:
        """Whether the names on the weights' level say that they come from self-supervised training."""
        return is_pretraining(shapes_of(self.levels[-1]))


def is_tensor(value: Any) -> bool:
    """Return whether `value` is a tensor of a checkpoint, usable or not."""
    return isinstance(value, Tensor | UnusableTensor)
