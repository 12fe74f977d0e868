"""What a network's own program computes: operator calls in the order of their execution, with their constants.

A TorchScript file has such a program (`fuseline.export.checkpoint.script_program` reads it), and a recognised network
can be put into the same form (`fuseline.export.recognition.programs.program_of_module`), so that the two can be
compared.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Pictures:
    """The program's input: (rows, channels, height, width)."""


@dataclass(frozen=True, slots=True)
class Result:
    """The result of a call."""

    call: int
    """Index of the call in `Program.calls`."""


@dataclass(frozen=True, slots=True)
class Weight:
    """A tensor that the checkpoint holds."""

    name: str
    shape: tuple[int, ...]
    values: tuple[float, ...] = ()
    """The values of a tensor of at most three numbers, in their order; empty for a larger one."""


@dataclass(frozen=True, slots=True)
class Size:
    """The size of one dimension of a tensor, which depends on the pictures."""

    of: Pictures | Result
    dimension: int


@dataclass(frozen=True, slots=True)
class Unknown:
    """A number or a setting that only the running program would know."""


@dataclass(frozen=True, slots=True)
class Call:
    """One call of an operator."""

    operator: str
    """ATen's name without the namespace and without the underscore of in-place operators: `conv2d`, `relu`."""
    arguments: tuple[Any, ...]
    """Plain values, lists of them, and `Pictures`, `Result`, `Weight`, `Size` and `Unknown`."""
    keywords: Mapping[str, Any] = field(default_factory=dict)
    layer: str = ""
    """The checkpoint's name of the module whose code calls the operator."""


@dataclass(frozen=True, slots=True)
class Program:
    """All calls of a network, and the result that is the logits."""

    calls: tuple[Call, ...]
    result: Pictures | Result

    def renamed(self, rename: Callable[[str], str | None]) -> "Program":
        """Return the program with weights and layers renamed; a name for which `rename` returns None stays."""

        def with_new_names(value: Any) -> Any:
            if isinstance(value, Weight):
                return Weight(rename(value.name) or value.name, value.shape, value.values)
            return type(value)(map(with_new_names, value)) if isinstance(value, list | tuple) else value

        calls = (
            Call(
                call.operator,
                with_new_names(call.arguments),
                call.keywords,
                rename(call.layer) or call.layer if call.layer else "",
            )
            for call in self.calls
        )
        return Program(tuple(calls), self.result)
