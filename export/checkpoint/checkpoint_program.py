"""The program of a TorchScript file: the weights that it takes, and the names that it has for them."""

from collections.abc import Iterable, Iterator
from typing import Any

from fuseline.export.checkpoint.checkpoint_file import FileContents
from fuseline.export.checkpoint.script_normalisation import normalisation_of
from fuseline.export.checkpoint.weights import Weights
from fuseline.export.checkpoint.wrapper_prefixes import Names
from fuseline.export.program import Program, Result, Weight

_COUNTER = ".num_batches_tracked"
_SHOWN = 4


def program_of(contents: Iterable[FileContents], weights: Weights, names: Names, notes: list[str]) -> Program | None:
    """Return the program with the names that the network's tensors have now; None if there is none for `weights`."""
    for content in contents:
        notes += content.notes
        if content.program is None:
            continue
        if weights.are_ema:
            notes.append("the file's program is that of its plain weights, so it tells nothing of the EMA weights")
            continue
        return content.program.renamed(names.renamed)
    return None


def leave_out_what_programs_do(contents: Iterable[FileContents], weights: Weights, notes: list[str]) -> None:
    """Remove from `weights` the constants of a program's normalisation, and tensors that its logits don't depend on."""
    for content in contents:
        program = content.program
        if program is None or weights.are_ema or weights.are_taken:
            continue
        normalisation = normalisation_of(program)
        taken = frozenset(_names_taken(normalisation.rest if normalisation else program))
        if not taken & weights.tensors.keys():
            continue
        constants = normalisation.constants if normalisation else frozenset()
        unused = [name for name in weights.tensors if name not in taken and not name.endswith(_COUNTER)]
        weights.named = {name: value for name, value in weights.named.items() if name not in set(unused)}
        if others := [name for name in unused if name not in constants]:
            more = f" and {len(others) - _SHOWN} more" if len(others) > _SHOWN else ""
            shown = ", ".join(f"`{name}`" for name in others[:_SHOWN])
            notes.append(f"left out, as the file's program computes no logits from it: {shown}{more}")


def _names_taken(program: Program) -> Iterator[str]:
    """Yield the names of the tensors that the program's result depends on."""
    left: list[Any] = [program.result]
    seen: set[int] = set()
    while left:
        value = left.pop()
        if isinstance(value, Weight):
            yield value.name
        elif isinstance(value, tuple):
            left.extend(value)
        elif isinstance(value, Result) and value.call not in seen:
            seen.add(value.call)
            call = program.calls[value.call]
            left += [*call.arguments, *call.keywords.values()]
