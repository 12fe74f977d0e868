"""Class names that users give: a text file, JSON, or the word `imagenet`."""

import json
from pathlib import Path
from typing import Any

from fuseline.serve.errors import InputError

IMAGENET = "imagenet"
_MAX_LABEL_BYTES = 2**20
_EXPECTED = (
    'one label a line, a JSON list, a JSON map such as {"0": "cat"} or {"cat": 0}, or the word `imagenet` were expected'
)


def labels_from(source: str, classes: int) -> tuple[str, ...]:
    """Return the labels that `source`, a file's path or `imagenet`, gives to `classes` classes, by index.

    Raises:
        InputError: no such file, none of the forms, or not one label for each class; the message says which.
    """
    labels = _imagenet() if source == IMAGENET else _from_file(Path(source))
    if len(labels) != classes:
        raise InputError(f"--labels {source}: has {len(labels)} labels, the network tells {classes} classes apart")
    if empty := [index for index, label in enumerate(labels) if not label]:
        raise InputError(f"--labels {source}: the label of class {empty[0]} is empty")
    return labels


def _imagenet() -> tuple[str, ...]:
    from torchvision.models import ResNet18_Weights

    return tuple(ResNet18_Weights.IMAGENET1K_V1.meta["categories"])


def _from_file(path: Path) -> tuple[str, ...]:
    try:
        if path.stat().st_size > _MAX_LABEL_BYTES:
            raise InputError(f"--labels {path}: has {path.stat().st_size} bytes; {_EXPECTED}")
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InputError(f"--labels {path}: {error.strerror}; {_EXPECTED}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"--labels {path}: is no UTF-8 text ({error.reason}); {_EXPECTED}") from error
    if not text.lstrip().startswith(("[", "{")):
        return tuple(line.strip() for line in text.rstrip().splitlines())
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        if path.suffix.lower() != ".json":  # a label may begin with a bracket
            return tuple(line.strip() for line in text.rstrip().splitlines())
        raise InputError(f"--labels {path}: is no JSON ({error}); {_EXPECTED}") from error
    return _from_list(value, path) if isinstance(value, list) else _from_map(value, path)


def _from_list(values: list[Any], path: Path) -> tuple[str, ...]:
    odd = [value for value in values if not isinstance(value, str)]
    if odd:
        raise InputError(f"--labels {path}: {odd[0]!r} is no text; {_EXPECTED}")
    return tuple(value.strip() for value in values)


def _from_map(named: dict[str, Any], path: Path) -> tuple[str, ...]:
    """Return the labels of a map of index to label, label to index, or index to several names, the last readable."""
    if all(isinstance(value, int) and not isinstance(value, bool) for value in named.values()):
        by_index = {index: label for label, index in named.items()}
    else:
        odd = [key for key in named if not (key.isascii() and key.isdigit())]
        if odd:
            raise InputError(f"--labels {path}: the key {odd[0]!r} is no class index; {_EXPECTED}")
        last = {int(key): value[-1] if isinstance(value, list) and value else value for key, value in named.items()}
        if wrong := [value for value in last.values() if not isinstance(value, str)]:
            raise InputError(f"--labels {path}: {wrong[0]!r} is no text; {_EXPECTED}")
        by_index = last
    missing = set(range(len(named))) - by_index.keys()
    if missing:
        raise InputError(
            f"--labels {path}: no label has the index {min(missing)}; indices from 0 to {len(named) - 1} were "
            "expected, each once"
        )
    return tuple(by_index[index].strip() for index in range(len(named)))
