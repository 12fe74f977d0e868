"""What the graphs of a package take and by which names clients know their tensors: `--input` and the names' flags."""

import re
import reprlib
from dataclasses import dataclass, replace

from fuseline.export.facts.model_facts import ModelFacts
from fuseline.serve.errors import InputError
from fuseline.serve.input_format import INPUT_FORMATS, InputFormat
from fuseline.serve.model_package import TENSOR_NAME_PATTERN, InputSpec
from fuseline.serve.precision import FP16_LARGEST, listed


@dataclass(frozen=True, slots=True)
class GraphInterface:
    """The form of a graph's input, and the names of its input and output."""

    format: InputFormat
    input_name: str
    output_name: str


def graph_interface(format: str, input_name: str | None, output_name: str | None) -> GraphInterface:
    """Return what `--input`, `--input-name` and `--output-name` say; None: the format's customary name.

    Raises:
        InputError: the format is unknown, a name is none that a tensor may have, or both are one name.
    """
    if format not in INPUT_FORMATS:
        raise InputError(f"--input {reprlib.repr(format)}: {listed(INPUT_FORMATS)} was expected")
    row = INPUT_FORMATS[format]
    for flag, name in (("--input-name", input_name), ("--output-name", output_name)):
        if name is not None and re.fullmatch(TENSOR_NAME_PATTERN, name) is None:
            raise InputError(
                f"{flag} {reprlib.repr(name)}: a tensor's name has 1 to 128 letters, digits, '.', '_', '/', ':' and "
                "'-', and begins with a letter, digit or '_'"
            )
    interface = GraphInterface(row, input_name or row.input_name, output_name or row.output_name)
    if interface.input_name == interface.output_name:
        raise InputError(
            f"input and output would both be called {interface.input_name!r}, and clients could not tell them apart; "
            "give another --input-name or --output-name"
        )
    return interface


def with_interface(facts: ModelFacts, interface: GraphInterface) -> ModelFacts:
    """Return `facts` of the same network whose graphs take `interface` instead of pixels.

    Raises:
        InputError: normalised pixels are beyond the numbers of the input's type.
    """
    largest = max(
        max(mean, 1 - mean) / std for mean, std in zip(facts.normalization.mean, facts.normalization.std, strict=True)
    )
    if interface.format.dtype == "float16" and largest > FP16_LARGEST:
        raise InputError(
            f"--input {interface.format.name}: by this mean and std a normalised pixel reaches {largest:.4g}, and FP16 "
            f"ends at {FP16_LARGEST:.0f}; take --input fp32-nchw"
        )
    form = {"name": interface.input_name, "dtype": interface.format.dtype, "layout": interface.format.layout}
    return replace(
        facts,
        input=InputSpec.model_validate(facts.input.model_dump() | form),
        normalization=facts.normalization.model_copy(update={"folded": not interface.format.normalised}),
    )
