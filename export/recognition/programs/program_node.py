"""One operator of a program in its normal form."""

from dataclasses import dataclass
from typing import Any

_MAX_LOOK_BACK = 32


@dataclass(frozen=True, slots=True, eq=False)
class Node:
    """One operator in normal form. Nodes that compute the same from the same inputs are equal."""

    kind: str
    """`pictures`, `weighted` (a convolution or a linear layer), `batch_norm`, `global_average`, `shortcut`, or ATen's
    name."""
    inputs: tuple["Node", ...] = ()
    settings: tuple[tuple[str, Any], ...] = ()
    """Constants by name."""
    weights: tuple[Any, ...] = ()
    """Names of the operator's tensors; None for one that is absent."""
    number: int = 0
    """Number that equal nodes of one `Graph` share; comparing it compares all that the nodes are computed from."""
    layer: str = ""
    """The module whose code calls the operator."""
    notes: tuple[tuple[str, Any], ...] = ()
    """Constants by name that don't count in a comparison: BatchNorm's `eps`, the `kernel` of a pool of fixed size."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Node) and self.number == other.number

    def __hash__(self) -> int:
        return self.number

    def setting(self, name: str) -> Any:
        """Return the setting or note called `name`; None if there is none."""
        return dict((*self.settings, *self.notes)).get(name)

    @property
    def is_pooled(self) -> bool:
        """Whether the result's height and width are 1."""
        node = self
        for _ in range(_MAX_LOOK_BACK):
            if node.kind == "global_average":
                return True
            if len(node.inputs) != 1 or (node.kind == "weighted" and node.setting("kernel") != (1, 1)):
                return False
            node = node.inputs[0]
        return False

    @property
    def channels(self) -> int | None:
        """Number of channels of the result; None if the program doesn't tell."""
        node = self
        for _ in range(_MAX_LOOK_BACK):
            if not node.inputs:
                return None
            if node.kind == "weighted":
                return int(node.setting("channels"))
            if node.kind == "shortcut":
                below = node.inputs[0].channels
                return None if below is None else below + int(node.setting("before")) + int(node.setting("after"))
            node = node.inputs[0]
        return None
