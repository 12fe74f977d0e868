"""The order of versions."""

import re

_DIGITS = re.compile(r"([0-9]+)")


def version_order(version: str) -> tuple[tuple[str, int], ...]:
    """Return what versions are ordered by: the numbers in them compare as numbers, so 10 is above 9, and 1.10 above
    1.9.
    """
    text_and_numbers = _DIGITS.split(version)
    numbers = [int(number) for number in text_and_numbers[1::2]]
    return tuple(zip(text_and_numbers[::2], [*numbers, -1], strict=True))
