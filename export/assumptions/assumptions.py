"""Assumptions: what the user says with `--assume KEY=VALUE`, and what is still open."""

import shlex
from collections.abc import Iterable, Mapping, Sequence

from fuseline.serve.errors import InputError
from fuseline.serve.model_package import Assumption


def assumed_from_texts(texts: Sequence[str]) -> dict[str, str]:
    """Return key -> value of `KEY=VALUE` texts, each of which may hold several, separated by commas.

    Raises:
        InputError: a text has no key, no `=` or no value, or a key comes twice.
    """
    assumed: dict[str, str] = {}
    for text in (part for whole in texts for part in whole.split(",")):
        key, equals, value = (part.strip() for part in text.partition("="))
        if not key or not equals or not value:
            raise InputError(f"--assume {text!r}: KEY=VALUE was expected, such as shortcut=zeros-after")
        if key in assumed:
            raise InputError(f"--assume {key} came twice")
        assumed[key] = value
    return assumed


def check_assumed(assumed: Mapping[str, str], assumptions: Iterable[Assumption]) -> None:
    """Raise `InputError` if this network has no assumption for a key of `assumed`, or none with its value."""
    taken = {assumption.key: assumption for assumption in assumptions}
    for key, value in assumed.items():
        if key not in taken:
            known = ", ".join(taken) or "none; its own code or file tells all"
            raise InputError(f"--assume {key}={value}: nothing of this network is called {key}; it has: {known}")
        if taken[key].is_open:
            raise InputError(
                f"--assume {key}={value}: only {key}={taken[key].value} can be computed; "
                "--factory package.module:function takes any other network"
            )


def is_by_flag(assumption: Assumption) -> bool:
    """Return whether a flag of the user's settled `assumption`."""
    return (assumption.settled_by or "").startswith("--")


def settled(assumptions: Iterable[Assumption], reasons: Mapping[str, str]) -> tuple[Assumption, ...]:
    """Return `assumptions`; open ones whose key is in `reasons` are settled by that reason."""
    return tuple(
        a.model_copy(update={"settled_by": reasons[a.key]}) if a.is_open and a.key in reasons else a
        for a in assumptions
    )


def check_none_open(assumptions: Iterable[Assumption]) -> None:
    """Raise `InputError` if an assumption is open, as `--strict` demands; the message has each with its flag."""
    if not (left := [assumption for assumption in assumptions if assumption.is_open]):
        return
    lines = "\n  ".join(assumption.line for assumption in left)
    confirmed = ",".join(f"{assumption.key}={assumption.value}" for assumption in left)
    raise InputError(
        f"--strict: {len(left)} of what changes answers {'is' if len(left) == 1 else 'are'} assumed and settled by "
        f"nothing, so nothing was written:\n  {lines}\nWhere all of it is so: --assume {shlex.quote(confirmed)}"
    )
