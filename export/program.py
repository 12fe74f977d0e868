"""What a network's own program computes: operator calls in the order of their execution, with their constants.

A TorchScript file has such a program (`fuseline.export.checkpoint.script_program` reads it), and a recognised
network can be put into the same form (`fuseline.export.recognition.programs.program_of_module`),
so that the one is held against the other.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Pictures:
    """The program's input: (rows, channels, height, width)."""


@dataclass(frozen=True, slots=True)
class Result:
    """What a call gave."""

    call: int
    """Its place in `Program.calls`."""


@dataclass(frozen=True, slots=True)
class Weight:
    """A tensor that the checkpoint holds."""

    name: str
    shape: tuple[int, ...]
    values: tuple[float, ...] = ()
    """Of at most three numbers, in their order; of more none."""


@dataclass(frozen=True, slots=True)
class Size:
    """One side of a tensor: a number that only the pictures decide."""

    of: Pictures | Result
    dimension: int


@dataclass(frozen=True, slots=True)
class Unknown:
    """A number or a setting that only the running program would know."""


@dataclass(frozen=True, slots=True)
class Call:
    """One call of an operator."""

    operator: str
    """ATen's name without the namespace and without the underscore of what works in place: `conv2d`, `relu`."""
    arguments: tuple[Any, ...]
    """Plain values, lists of them, and `Pictures`, `Result`, `Weight`, `Size` and `Unknown`."""
    keywords: Mapping[str, Any] = field(default_factory=dict)
    layer: str = ""
    """The module whose code calls it, by the checkpoint's name."""


@dataclass(frozen=True, slots=True)
class Program:
    """All calls, and which of them gives the logits."""

    calls: tuple[Call, ...]
    result: Pictures | Result

    def renamed(self, rename: Callable[[str], str | None]) -> "Program":
        """The same program with weights and layers called otherwise; what `rename` gives no name keeps its own."""

        def of(value: Any) -> Any:
            if isinstance(value, Weight):
                return Weight(rename(value.name) or value.name, value.shape, value.values)
            return type(value)(map(of, value)) if isinstance(value, list | tuple) else value

        calls = (
            Call(
                call.operator, of(call.arguments), call.keywords, rename(call.layer) or call.layer if call.layer else ""
            )
            for call in self.calls
        )
        return Program(tuple(calls), self.result)
