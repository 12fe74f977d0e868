"""Tensors renamed as the user says: `--rename FILE`, and the template for it."""

import json
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fuseline.export.checkpoint.checkpoint import Checkpoint
from fuseline.export.recognition.naming.naming_schemes import SCHEMES, scheme_named
from fuseline.export.recognition.naming.shape_reading import read_shapes
from fuseline.export.recognition.recognised import Recognised
from fuseline.export.recognition.renaming import names_in
from fuseline.serve.errors import ArchitectureError, InputError

_MAX_BYTES = 16_000_000
_MAX_NAME = 1000
_MAX_PATTERNS = 1000
_MAX_SECONDS = 10.0
_COUNTER = "num_batches_tracked"
_SHOWN = 3

# Patterns run in a process of their own, which can be ended: Python's `re` may take time exponential in a name's
# length, and nothing within the process stops it. Names may not grow without bound either.
_RENAME = """
import json, re, sys
patterns, names, longest = json.load(sys.stdin)
counts = []
for number, (pattern, replacement) in enumerate(patterns):
    try:
        found = re.compile(pattern)
        counts.append(sum(found.search(name) is not None for name in names))
        names = [found.sub(replacement, name) for name in names]
        if any(len(name) > longest for name in names):
            raise re.error(f"it makes a name of more than {longest} characters")
    except (re.error, IndexError, RecursionError, OverflowError, MemoryError) as error:
        print(json.dumps({"number": number, "error": str(error) or type(error).__name__}))
        sys.exit()
print(json.dumps({"counts": counts, "names": names}))
"""


@dataclass(frozen=True)
class Renames:
    """What a file of `--rename` says."""

    path: Path
    rules: Mapping[str, str]
    """Rules in the file's order. A key that is a tensor's whole name renames that tensor; any other is a regular
    expression."""


def read_renames(path: Path) -> Renames:
    """Return the rules in the JSON object at `path`.

    Raises:
        InputError: there is no such file, it has more than 16 MB, it is no JSON object of texts, or a key comes twice.
    """
    try:
        with path.open("rb") as stream:
            data = stream.read(_MAX_BYTES + 1)
        if len(data) > _MAX_BYTES:
            raise ValueError(f"it has more than {_MAX_BYTES} bytes")
        found = json.loads(data, object_pairs_hook=_without_repetitions)
    except OSError as error:
        raise InputError(f"--rename {path} can't be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(
            f'--rename {path}: a JSON object was expected, {{"their name": "our name"}} or {{"regular expression": '
            f'"replacement"}}, but {error}'
        ) from error
    if not isinstance(found, dict) or not found or not all(isinstance(value, str) for value in found.values()):
        raise InputError(
            f'--rename {path}: a JSON object of texts was expected, such as {{"conv.weight": "conv1.weight"}}'
        )
    return Renames(path, found)


def renamed_checkpoint(checkpoint: Checkpoint, renames: Renames) -> Checkpoint:
    """Return `checkpoint` with its tensors, and what belongs to their layers, under the names that `renames` give.

    A tensor whose new name is empty, as a template leaves it, keeps its own. `num_batches_tracked` is renamed with its
    layer.

    Raises:
        InputError: a rule matches nothing, a pattern is wrong or too slow, two tensors get one name, or a pattern makes
            a name empty.
    """
    where = f"--rename {renames.path}"
    own = [*checkpoint.tensors, *checkpoint.counters]
    exact = {key: value or key for key, value in renames.rules.items() if key in set(own)}
    patterns = [(key, value) for key, value in renames.rules.items() if key not in exact]
    rest = [name for name in own if name not in exact]
    new = exact | dict(zip(rest, _substituted(patterns, rest, where), strict=True))
    layers = {name.rpartition(".")[0]: new[name].rpartition(".")[0] for name in checkpoint.tensors}
    for counter in checkpoint.counters:
        if counter not in exact:
            layer = counter.rpartition(".")[0]
            new[counter] = f"{layers[layer]}.{_COUNTER}" if layer in layers else new[counter]
    _check_names(new, where)
    changed = sum(new[name] != name for name in checkpoint.tensors)
    return replace(
        checkpoint,
        tensors={new[name]: tensor for name, tensor in checkpoint.tensors.items()},
        counters={new[name]: tensor for name, tensor in checkpoint.counters.items()},
        layer_settings={layers.get(layer, layer): found for layer, found in checkpoint.layer_settings.items()},
        notes=(*checkpoint.notes, f"{changed} of {len(checkpoint.tensors)} tensors renamed by {where}"),
    )


def template_of(checkpoint: Checkpoint, recognised: Recognised | None) -> dict[str, str]:
    """Return each tensor's name in the checkpoint to the name that it needs, "" where none can be told.

    The names are right if the network was recognised; else shapes and order suggest them, and a person has to check.
    """
    if recognised is None:
        return dict(read_shapes(checkpoint.tensors).names)
    for scheme in (*(scheme_named(name) for name in ("torchvision", "cifar")), *SCHEMES):
        try:
            names = names_in(scheme, recognised)
        except ArchitectureError:
            continue
        stored = {
            f"{recognised.layer_names[name.rpartition('.')[0]]}.{name.rpartition('.')[2]}": new
            for name, new in names.items()
        }
        return {name: stored.get(name, "") for name in checkpoint.tensors}
    return {name: name for name in checkpoint.tensors}


def _substituted(patterns: list[tuple[str, str]], names: list[str], where: str) -> list[str]:
    """Return `names` after all of `patterns`, applied in order."""
    if not patterns:
        return names
    if len(patterns) > _MAX_PATTERNS:
        raise InputError(
            f"{where}: {len(patterns)} keys are no tensor's whole name, such as {patterns[0][0]!r}, and so regular "
            f"expressions, of which {_MAX_PATTERNS} are taken; is it the file of another checkpoint?"
        )
    if long := next(
        (text for text in (*names, *(p for pair in patterns for p in pair)) if len(text) > _MAX_NAME), None
    ):
        raise InputError(
            f"{where}: {long[:40]!r}... has more than {_MAX_NAME} characters; regular expressions need fewer"
        )
    try:
        ran = subprocess.run(  # noqa: S603 - runs this interpreter on the constant program above
            [sys.executable, "-I", "-c", _RENAME],
            input=json.dumps([patterns, names, _MAX_NAME]),
            capture_output=True,
            text=True,
            timeout=_MAX_SECONDS,
            check=True,
        )
    except subprocess.TimeoutExpired as error:
        raise InputError(
            f"{where}: its regular expressions took more than {_MAX_SECONDS:g} s on {len(names)} names; repetition "
            "within repetition, as in (a+)+, does that: write them simpler, or whole names instead"
        ) from error
    except subprocess.CalledProcessError as error:
        raise InputError(f"{where}: its regular expressions failed: {error.stderr.strip()[-200:]}") from error
    done: dict[str, Any] = json.loads(ran.stdout)
    if "error" in done:
        pattern, replacement = patterns[done["number"]]
        raise InputError(
            f"{where}: {json.dumps({pattern: replacement})}: no tensor has that key as its whole name, and as a "
            f"regular expression with its replacement it is wrong: {done['error']}"
        )
    for number, count in enumerate(done["counts"]):
        if not count:
            before = ", as the rules before it left them," if number else ""
            raise InputError(
                f"{where}: {patterns[number][0]!r} is no tensor's whole name, and as a regular expression it matches "
                f"none of the {len(names)} names{before} such as {', '.join(names[:_SHOWN])}; correct it or leave it "
                "out"
            )
    return list(done["names"])


def _check_names(new: Mapping[str, str], where: str) -> None:
    holders: dict[str, str] = {}
    for old, name in new.items():
        if not name:
            raise InputError(f"{where}: {old} would have an empty name")
        if name in holders:
            raise InputError(
                f"{where}: {holders[name]} and {old} would both be called {name}; each tensor needs a name of its own"
            )
        holders[name] = old


def _without_repetitions(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the key {key!r} comes twice")
        found[key] = value
    return found
