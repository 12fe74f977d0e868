"""Stand-ins for the classes, functions and objects of a pickle, none of which is imported, called or made."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Name:
    """A class or function that a pickle names, such as `torch.FloatStorage`; it is not imported."""

    name: str


@dataclass(eq=False, repr=False, slots=True)
class Inert:
    """An object of a class that was not imported: the arguments and the state that it would have been made from."""

    name: str
    """Name of its class, or of the function that would have made it: `argparse.Namespace`."""
    arguments: tuple[Any, ...] = ()
    keywords: dict[Any, Any] = field(default_factory=dict)
    state: Any = None
    items: list[Any] = field(default_factory=list)
    """Items of an object whose class is a list."""
    entries: dict[Any, Any] = field(default_factory=dict)
    """Entries of an object whose class is a dict."""


def attributes_of(value: Any) -> dict[Any, Any]:
    """Return the entries and attributes of an inert object, or a dict as it is; {} of anything else."""
    if isinstance(value, dict):
        return value
    if not isinstance(value, Inert):
        return {}
    state, slots = value.state, None
    if isinstance(state, tuple) and len(state) == 2 and isinstance(state[1], dict):  # of a class with __slots__
        state, slots = state
    state = state if isinstance(state, dict) else {}
    return state | (slots or {}) | value.entries if slots or value.entries else state
