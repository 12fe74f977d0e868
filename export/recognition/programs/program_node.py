"""One operator of a program in its normal form."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, eq=False)
class Node:
    """One operator in the normal form. Two that compute the same of the same are equal."""

    kind: str
    """`pictures`, `weighted` (a convolution or a linear layer), `batch_norm`, `global_average`, `shortcut`, or ATen's
    name."""
    inputs: tuple["Node", ...] = ()
    settings: tuple[tuple[str, Any], ...] = ()
    """Constants by name."""
    weights: tuple[Any, ...] = ()
    """Names of its tensors."""
    number: int = 0
    """Equal nodes of a `Graph`'s table have the same; it stands for all above it in comparisons."""
    layer: str = ""
    """The module whose code calls it."""
    notes: tuple[tuple[str, Any], ...] = ()
    """What doesn't count in a comparison: BatchNorm's `eps`, and the `kernel` of a pool of fixed size."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Node) and self.number == other.number

    def __hash__(self) -> int:
        return self.number

    def told(self, setting: str) -> Any:
        """A setting or a note by its name; None if it hasn't one."""
        return dict((*self.settings, *self.notes)).get(setting)
