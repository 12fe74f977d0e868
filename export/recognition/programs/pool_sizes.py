"""The pictures whose last map a pool of a fixed size covers, no more and no less."""

from dataclasses import dataclass
from typing import Any

from fuseline.export.recognition.programs.program_node import Node


@dataclass(frozen=True, slots=True)
class InputSizes:
    """(height, width) in pixels of the pictures for which a pool of a fixed size is a global one."""

    usual: tuple[int, int]
    """Those that halve without rest all the way to the pool."""
    smallest: tuple[int, int]
    largest: tuple[int, int]

    def take(self, size: tuple[int, int]) -> bool:
        """Whether pictures of `size` (height, width) are among them."""
        sides = zip(self.smallest, size, self.largest, strict=True)
        return all(least <= side <= most for least, side, most in sides)


def input_sizes(pool: Node, kernel: tuple[int, int], *, ceil_mode: bool) -> InputSizes | None:
    """For which pictures a pool of `kernel` (height, width), where `pool` stands, covers its map; None for none.

    Args:
        pool: a node behind the layers that shrink the pictures.
        kernel: of the pool that the code has there.
        ceil_mode: whether that pool takes smaller maps whole, too, as one that lets its window hang over does.
    """
    chain = []
    node = pool
    while node.inputs:
        node = node.inputs[0]
        chain.append(node)
    found = []
    for axis, side in enumerate(kernel):
        stride = 1
        for step in chain:
            stride *= _at(step.told("stride"), axis, 1)
        fitting = [
            pixels
            for pixels in range(1, (side + 1) * stride)
            if (rest := _shrunk(pixels, chain, axis)) == side or (ceil_mode and 0 < rest < side)
        ]
        if not fitting:
            return None
        usual = side * stride
        found.append((usual if usual in fitting else fitting[-1], fitting[0], fitting[-1]))
    (height, width) = found
    return InputSizes((height[0], width[0]), (height[1], width[1]), (height[2], width[2]))


def _shrunk(pixels: int, chain: list[Node], axis: int) -> int:
    """How many rows or columns are left of `pixels` behind all of `chain`, which is in the order from the end."""
    for step in reversed(chain):
        kernel = _at(step.told("kernel_size") or step.told("kernel"), axis, 1)
        stride = _at(step.told("stride"), axis, 1)
        if kernel == stride == 1:
            continue
        reach = pixels + 2 * _at(step.told("padding"), axis, 0) - _at(step.told("dilation"), axis, 1) * (kernel - 1) - 1
        rounding = stride - 1 if step.told("ceil_mode") or step.told("ceil") else 0
        pixels = (reach + rounding) // stride + 1
    return pixels


def _at(value: Any, axis: int, otherwise: int) -> int:
    side = value[axis] if isinstance(value, tuple) and len(value) == 2 else otherwise
    return side if type(side) is int and side >= 0 else otherwise
