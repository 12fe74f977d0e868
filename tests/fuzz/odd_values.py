"""JSON with one value of it replaced by another that nobody expects there."""

import copy
from collections.abc import Iterator
from typing import Any

ODD: tuple[Any, ...] = (
    None,
    True,
    -1,
    1.5,
    10**30,
    "",
    "a\0b",
    "\u00e9",
    "\ud800",
    [],
    {},
    ["\u00e9"],
    {"b64": "\u00e9"},
)
_MOST_OF_A_LIST = 2
_NEW_NAME = "\u00e9"


def with_odd_values(value: dict[str, Any]) -> Iterator[Any]:
    """`value`; then with each of its values in turn replaced by each of `ODD`, and each object with one more member."""
    yield value
    for place in _places(value):
        for odd in ODD:
            yield _replaced(value, place, odd)


def _places(value: Any, place: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    yield place
    if isinstance(value, dict):
        yield (*place, _NEW_NAME)
        for name, member in value.items():
            yield from _places(member, (*place, name))
    elif isinstance(value, list):
        for index, element in enumerate(value[:_MOST_OF_A_LIST]):
            yield from _places(element, (*place, index))


def _replaced(value: Any, place: tuple[str | int, ...], odd: Any) -> Any:
    if not place:
        return odd
    whole = copy.deepcopy(value)
    its = whole
    for step in place[:-1]:
        its = its[step]
    its[place[-1]] = odd
    return whole
