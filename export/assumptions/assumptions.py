"""What the user says of what nothing tells, `--assume KEY=VALUE`, and what is still open."""

import shlex
from collections.abc import Iterable, Mapping, Sequence

from fuseline.serve.errors import InputError
from fuseline.serve.model_package import Assumption


def assumed_from_texts(texts: Sequence[str]) -> dict[str, str]:
    """`KEY=VALUE` texts, several with commas between them, by key.

    Raises:
        InputError: a text without a key or `=`, or a key that came twice.
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
    """Raise `InputError` if a key of `assumed` is none that this network has, or its value isn't taken."""
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
    """Whether the user said it."""
    return (assumption.settled_by or "").startswith("--")


def settled(assumptions: Iterable[Assumption], reasons: Mapping[str, str]) -> tuple[Assumption, ...]:
    """The same, of which those whose key is in `reasons` are settled by them."""
    return tuple(
        a.model_copy(update={"settled_by": reasons[a.key]}) if a.is_open and a.key in reasons else a
        for a in assumptions
    )


def check_none_open(assumptions: Iterable[Assumption]) -> None:
    """Raise `InputError` if one is open, as `--strict` has it; the message has each with its flag."""
    if not (left := [assumption for assumption in assumptions if assumption.is_open]):
        return
    lines = "\n  ".join(assumption.line for assumption in left)
    confirmed = ",".join(f"{assumption.key}={assumption.value}" for assumption in left)
    raise InputError(
        f"--strict: {len(left)} of what changes answers {'is' if len(left) == 1 else 'are'} assumed and settled by "
        f"nothing, so nothing was written:\n  {lines}\nWhere all of it is so: --assume {shlex.quote(confirmed)}"
    )
