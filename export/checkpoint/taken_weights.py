"""The weights that `--take KEY_OR_PREFIX` means: those at a key, or those whose names begin with a prefix."""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fuseline.export.checkpoint.wrapper_prefixes import printable
from fuseline.serve.errors import CheckpointError

_SHOWN = 8


def key_to_take(content: Mapping[Any, Any], take: str) -> list[str]:
    """Return the keys of `content` that are `take`, or its beginning up to a dot, the longest first."""
    keys = [key for key in content if isinstance(key, str) and key and f"{take}.".startswith(f"{key}.")]
    return sorted(keys, key=len, reverse=True)


def prefix_to_take(names: Iterable[str], take: str, keys: Sequence[str], path: Path) -> str:
    """Return the prefix of `names`, with its dot, that `take` means; wrappers' prefixes may come before it.

    Raises:
        CheckpointError: `take` fits no prefix, or several; the message lists the prefixes, and the usable `keys`.
    """
    names = list(names)
    take = take.removesuffix(".")
    behind = re.compile(rf"((?:.*?\.)?{re.escape(take)}\.)[^.]")
    found = dict.fromkeys(match[1] for name in names if (match := behind.match(name)))
    if len(found) == 1 or f"{take}." in found:
        return f"{take}." if f"{take}." in found else next(iter(found))
    if found:
        shown = " or ".join(f"--take {printable(prefix.removesuffix('.'))}" for prefix in list(found)[:_SHOWN])
        raise CheckpointError(f"{path}: --take {take} fits {len(found)} prefixes of names; give one: {shown}")
    there = [
        f"{what} {', '.join(f'`{printable(item)}`' for item in items[:_SHOWN])}"
        f"{f' and {len(items) - _SHOWN} more' if len(items) > _SHOWN else ''}"
        for what, items in (("the keys", keys), ("the prefixes", _prefixes(names)))
        if items
    ]
    raise CheckpointError(
        f"{path}: --take {take!r} names no key that holds weights and no prefix of their names; there are "
        f"{' and '.join(there) or 'neither'}"
    )


def _prefixes(names: Sequence[str]) -> list[str]:
    """Return the first parts of `names` behind what all of them share, with that."""
    shared = ""
    while names and all("." in name for name in names):
        firsts = list(dict.fromkeys(name.partition(".")[0] for name in names))
        if len(firsts) > 1:
            return [f"{shared}{first}" for first in firsts]
        shared += f"{firsts[0]}."
        names = [name.partition(".")[2] for name in names]
    firsts = list(dict.fromkeys(f"{shared}{name.partition('.')[0]}" for name in names if "." in name))
    return firsts or [shared.removesuffix(".")] * bool(shared)
