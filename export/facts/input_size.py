"""The size of a network's input, as users write it."""

from fuseline.serve.errors import InputError
from fuseline.serve.model_package import MAX_INPUT_SIDE

MIN_INPUT_SIDE = 8


def input_size_from_text(text: str) -> tuple[int, int]:
    """Return (height, width) in pixels of `224` or `224x160`. Raise `InputError` for anything else."""
    parts = text.lower().split("x")
    if len(parts) not in (1, 2) or not all(part.isascii() and part.isdigit() for part in parts):
        raise InputError(
            f"--input-size {text!r}: a number such as 224, or height x width such as 224x160, was expected"
        )
    height, width = int(parts[0]), int(parts[-1])
    check_input_size(height, width)
    return height, width


def check_input_size(height: int, width: int) -> None:
    """Raise `InputError` unless both sides lie within the bounds."""
    if not (MIN_INPUT_SIDE <= height <= MAX_INPUT_SIDE and MIN_INPUT_SIDE <= width <= MAX_INPUT_SIDE):
        raise InputError(
            f"--input-size: {height} x {width} pixels came, each side must be {MIN_INPUT_SIDE} to {MAX_INPUT_SIDE}"
        )
