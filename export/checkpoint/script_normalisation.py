"""The normalisation that a program does before its first layer: (pictures - mean) / std, in any form."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from fuseline.export.program import Call, Pictures, Program, Result, Weight

_VIEWS = ("view", "reshape", "unsqueeze", "slice", "to", "expand")
_LARGEST_OF_UNIT = 2.0
"""Largest mean and deviation of pixels of 0..1, which are below 1; for pixels of 0..255 one of them is far above it."""
_COLOURS = 3
_MAX_STEPS = 16


@dataclass(frozen=True, slots=True)
class Normalisation:
    """How a program normalises pictures itself."""

    mean: list[float]
    """Mean of each colour, of pixels scaled to 0..1."""
    std: list[float]
    """Standard deviation of each colour, as `mean`."""
    rest: Program
    """The program without the normalisation."""
    constants: frozenset[str]
    """Names of the tensors that the normalisation takes."""


def normalisation_of(program: Program) -> Normalisation | None:
    """Return the normalisation by the additions and multiplications that `program` begins with; None without any."""
    value: Pictures | Result = Pictures()
    scale, shift = [1.0], [0.0]
    taken: set[int] = set()
    while len(taken) < _MAX_STEPS and len(places := _users(program, value)) == 1:
        call = program.calls[places[0]]
        step = _step(program, call, value)
        if step is None:
            break
        scale, shift = _times(scale, step[0]), _plus(_times(shift, step[0]), step[1])
        value = Result(places[0])
        taken.add(places[0])
    if not taken or not all(math.isfinite(number) and number > 0 for number in scale):
        return None
    std = [1 / number for number in scale]
    mean = _times([-number for number in shift], std)
    if max(*std, *map(abs, mean)) > _LARGEST_OF_UNIT:
        mean, std = [number / 255 for number in mean], [number / 255 for number in std]
    calls = tuple(_on_pictures(call, value) for call in program.calls)
    count = max(len(mean), len(std), _channels(program))
    constants = frozenset(name for place in taken for name in _names(program, program.calls[place].arguments, value))
    rest = Program(calls, program.result)
    return Normalisation(mean * (count // len(mean)), std * (count // len(std)), rest, constants)


def _names(program: Program, arguments: Sequence[Any], value: Any) -> Iterator[str]:
    """Yield the names of the tensors among `arguments`, and of those that views among them show."""
    for argument in arguments:
        item = argument
        while isinstance(item, Result) and item != value and program.calls[item.call].operator in _VIEWS:
            item = program.calls[item.call].arguments[0]
        if isinstance(item, Weight):
            yield item.name


def _channels(program: Program) -> int:
    """Return the number of the pictures' channels, by the first convolution's kernel."""
    arguments = (argument for call in program.calls for argument in call.arguments)
    kernels = (
        item.shape[1] for item in arguments if isinstance(item, Weight) and len(item.shape) == 4 and item.shape[0] > 1
    )
    return min(next(kernels, 1), _COLOURS)


def _users(program: Program, value: Any) -> list[int]:
    """Return the indices of the calls that take `value`, apart from those that only take its sizes."""
    return [place for place, call in enumerate(program.calls) if _takes(call.arguments, value)]


def _takes(arguments: Sequence[Any], value: Any) -> bool:
    return any(item == value or (isinstance(item, tuple) and _takes(item, value)) for item in arguments)


def _step(program: Program, call: Call, value: Any) -> tuple[list[float], list[float]] | None:
    """Return (factor, summand) of a call that combines `value` with a constant; None of any other call."""
    if len(call.arguments) < 2 or call.arguments[2:] not in ((), (1,)) or call.keywords:
        return None
    first, second = call.arguments[:2]
    numbers = _numbers(program, second if first == value else first)
    if (
        numbers is None
        or call.operator not in ("sub", "add", "mul", "div")
        or (first != value and call.operator in ("sub", "div"))
    ):
        return None
    if call.operator == "div" and not all(numbers):
        return None
    match call.operator:
        case "sub":
            return [1.0], [-number for number in numbers]
        case "add":
            return [1.0], numbers
        case "mul":
            return numbers, [0.0]
    return [1 / number for number in numbers], [0.0]


def _numbers(program: Program, value: Any) -> list[float] | None:
    while isinstance(value, Result) and program.calls[value.call].operator in _VIEWS:
        value = program.calls[value.call].arguments[0]
    if type(value) in (int, float):
        return [float(value)]
    is_colours = isinstance(value, Weight) and len(value.values) in (1, _COLOURS)
    return list(value.values) if is_colours else None


def _times(one: list[float], other: list[float]) -> list[float]:
    count = max(len(one), len(other))
    return [a * b for a, b in zip(one * (count // len(one)), other * (count // len(other)), strict=True)]


def _plus(one: list[float], other: list[float]) -> list[float]:
    count = max(len(one), len(other))
    return [a + b for a, b in zip(one * (count // len(one)), other * (count // len(other)), strict=True)]


def _on_pictures(call: Call, normalised: Any) -> Call:
    """Return `call` with the pictures themselves where it takes the `normalised` ones."""

    def replaced(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(map(replaced, value))
        return Pictures() if value == normalised else value

    return Call(call.operator, replaced(call.arguments), call.keywords, call.layer)
