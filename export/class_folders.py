"""The class of each image, from folders that are classes, as torchvision's ImageFolder has them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fuseline.export.checkpoint.wrapper_prefixes import printable
from fuseline.export.sample import ImageFolder, is_hidden

KEY = "folders"
"""Key of `--assume` for what the folders are: `classes`, or `other`."""
_SPLITS = frozenset({"train", "training", "val", "valid", "validation", "test", "testing", "eval", "images"})
_LEAST_FOLDERS = 2
_SHOWN = 4


@dataclass(frozen=True, slots=True)
class ClassFolders:
    """The classes of images that lie in class folders."""

    labels: tuple[str, ...] | None
    """The folders' names in sorted order, if there are as many as classes; None where another source names them."""
    truth: NDArray[np.int64]
    """Class of each image, (n,)."""
    doubts: tuple[str, ...]
    """Sentences for the user: what doesn't fit."""


def class_folders(images: ImageFolder, labels: Sequence[str] | None, classes: int) -> tuple[ClassFolders | None, str]:
    """Return the classes of `images`, or None and a sentence that says why the folders aren't classes.

    The sentence is "" if nothing looks like class folders. The classes are the folders in the order of their sorted
    names (torchvision/datasets/folder.py: `find_classes`), unless `labels` has all of the names: then the index of a
    label is its class.

    Args:
        images: images of a folder whose subfolders may be classes.
        labels: names of the classes that a flag or the checkpoint gives; None: nothing does.
        classes: number of classes that the network tells apart.
    """
    names = _folders(images.folder)
    inside = [path.relative_to(images.folder).parts for path in images.files]
    if len(names) < _LEAST_FOLDERS or all(len(parts) == 1 for parts in inside):
        return None, ""
    if any(len(parts) == 1 for parts in inside):
        return None, "some of the images lie beside the folders, so that the folders are taken for no classes"
    if all(name.casefold() in _SPLITS for name in names):
        best = next((name for name in names if name.casefold().startswith(("val", "test", "eval"))), names[0])
        return None, f"{_some(names)} look like parts of a data set; --images {images.folder / best} names one"
    place_of = _places(names, labels) if labels is not None else None
    if place_of is not None:
        return ClassFolders(None, _truth(inside, place_of), ()), ""
    if len(names) != classes:
        what = "" if labels is None else " and their names are not among the labels"
        return None, (
            f"there are {len(names)} folders ({_some(names)}) for {classes} classes{what}, so they are taken for no "
            "classes"
        )
    truth = _truth(inside, {name: index for index, name in enumerate(names)})
    if labels is None:
        return ClassFolders(tuple(map(printable, names)), truth, tuple(_doubts_of_order(names))), ""
    doubt = (
        f"the folders' names ({_some(names)}) don't fit the labels ({_some(labels)}); the folders in sorted order are "
        "taken for the classes, as torchvision's ImageFolder has them"
    )
    return ClassFolders(None, truth, (doubt,)), ""


def _doubts_of_order(names: Sequence[str]) -> Iterator[str]:
    if all(name.isascii() and name.isdigit() for name in names) and sorted(names, key=int) != list(names):
        yield (
            f"the folders' names are numbers, and torchvision's ImageFolder sorts them as texts: {_some(names)}, which "
            "is taken for the classes' order; if the training took them as numbers, --labels FILE with one a line says "
            "it"
        )


def _folders(folder: Path) -> tuple[str, ...]:
    return tuple(sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not is_hidden(entry.name)))


def _places(names: Sequence[str], labels: Sequence[str]) -> dict[str, int] | None:
    """Return folder name -> index of the label of that name; None unless each folder has a label of its own."""
    known: dict[str, int] = {}
    for index, label in enumerate(labels):
        known.setdefault(_folded(label), index)
    places = {name: known[_folded(name)] for name in names if _folded(name) in known}
    return places if len(places) == len(names) == len(set(places.values())) else None


def _folded(name: str) -> str:
    return "".join(char for char in name.casefold() if char.isalnum()) or name


def _truth(inside: Sequence[tuple[str, ...]], place_of: dict[str, int]) -> NDArray[np.int64]:
    return np.array([place_of[parts[0]] for parts in inside], np.int64)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
