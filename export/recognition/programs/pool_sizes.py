"""The sizes of pictures whose last map a pool of a fixed size covers exactly."""

from dataclasses import dataclass
from typing import Any

from fuseline.export.recognition.programs.program_node import Node


@dataclass(frozen=True, slots=True)
class InputSizes:
    """The (height, width) in pixels of the pictures for which a pool of a fixed size is a global one."""

    usual: tuple[int, int]
    """The size that halves without a remainder all the way to the pool, if there is one; else the largest."""
    smallest: tuple[int, int]
    largest: tuple[int, int]

    def take(self, size: tuple[int, int]) -> bool:
        """Return whether `size` (height, width) is among them."""
        sides = zip(self.smallest, size, self.largest, strict=True)
        return all(least <= side <= most for least, side, most in sides)


def input_sizes(pool: Node, kernel: tuple[int, int], *, ceil_mode: bool) -> InputSizes | None:
    """Return the sizes of pictures whose map a pool of `kernel` (height, width) covers in the place of `pool`, or None.

    Args:
        pool: node behind the layers that shrink the pictures.
        kernel: kernel of the pool that the checkpoint's code has there.
        ceil_mode: whether that pool's window may reach beyond the map, so that it also takes smaller maps whole.
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
            stride *= _at(step.setting("stride"), axis, 1)
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
    """Return how many rows or columns of `pixels` are left behind all nodes of `chain`, whose last comes first."""
    for step in reversed(chain):
        kernel = _at(step.setting("kernel_size") or step.setting("kernel"), axis, 1)
        stride = _at(step.setting("stride"), axis, 1)
        if kernel == stride == 1:
            continue
        padding, dilation = _at(step.setting("padding"), axis, 0), _at(step.setting("dilation"), axis, 1)
        rounding = stride - 1 if step.setting("ceil_mode") or step.setting("ceil") else 0
        pixels = (pixels + 2 * padding - dilation * (kernel - 1) - 1 + rounding) // stride + 1
    return pixels


def _at(value: Any, axis: int, otherwise: int) -> int:
    side = value[axis] if isinstance(value, tuple) and len(value) == 2 else otherwise
    return side if type(side) is int and side >= 0 else otherwise
