"""A folder with a folder of images for each class, as torchvision's `ImageFolder` has them."""

import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from data import NAMED, Images, LabelledImages, OnRead
from pixels import PixelHistogram
from torch import Tensor
from torchvision.datasets import ImageFolder
from torchvision.datasets.folder import IMG_EXTENSIONS, pil_loader
from torchvision.transforms import CenterCrop, Compose, PILToTensor, Resize

MAX_BYTES_IN_MEMORY = 2 * 2**30
"""Up to so many bytes of pixels are kept; of more, each file is decoded again whenever it is needed."""

_HELD_OUT_SHARE = 0.2
_ROWS_AT_ONCE = 256
_NAMES_SHOWN = 5


def load_image_folder(
    folder: Path, *, side: int, on_read: OnRead | None = None, max_bytes_in_memory: int = MAX_BYTES_IN_MEMORY
) -> LabelledImages:
    """The images of `folder`, each resized by its shorter side and cropped at its centre to `side` x `side` RGB pixels.

    If `folder` has train/ and val/, val/ is held out. If it has no val/, a fifth of each class is, chosen by a seed, so
    always the same as long as the files are. Labels are the class folders' names, in alphabetical order. Every file is
    decoded once here, so that one that can't be is found before the training.

    Raises:
        ValueError: there is no such folder; fewer than 2 classes; a class with fewer than 2 images to train on (or none
            in val/); classes that differ between train/ and val/; files that can't be read.
    """
    if not folder.is_dir():
        raise ValueError(
            f"there is no folder {folder}, and no data set is called so; expected {', '.join(NAMED)} or a folder with "
            "a folder of images for each class"
        )
    train, held_out = _split(folder)
    reader = _Reader(side)
    in_memory = (len(train.paths) + len(held_out.paths)) * 3 * side * side <= max_bytes_in_memory
    histogram = PixelHistogram()
    train_images, held_out_images = _read_all((train, held_out), reader, histogram, on_read, keep=in_memory)
    mean, std = histogram.mean_and_std()
    return LabelledImages(
        labels=train.labels,
        train_images=train_images,
        train_classes=torch.tensor(train.classes),
        held_out_images=held_out_images,
        held_out_classes=torch.tensor(held_out.classes),
        mean=mean,
        std=std,
        flip=True,
        fingerprint=_fingerprint(folder, (*train.paths, *held_out.paths)),
    )


def resized_shorter_side(side: int) -> int:
    """To how many pixels an image's shorter side is resized before the crop: what `export` writes into its packages.

    Small pictures are used whole; of larger ones torchvision's evaluation recipe crops 224 of 256.
    """
    return side if side <= 64 else round(side * 256 / 224)


class ImageFiles:
    """Images decoded when they are asked for, so that there may be more than the memory holds."""

    def __init__(self, paths: Sequence[str], reader: "_Reader") -> None:
        self._paths = paths
        self._reader = reader

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, rows: Tensor) -> Tensor:
        """Those at `rows`, uint8 (len(rows), 3, side, side). Raises `ValueError` for files that can't be read."""
        pixels, unreadable = self._reader.read([self._paths[int(row)] for row in rows])
        _check_readable(unreadable)
        return pixels


@dataclass(frozen=True)
class _Files:
    labels: list[str]
    paths: list[str]
    classes: list[int]

    def pick(self, positions: Iterable[int]) -> "_Files":
        chosen = sorted(positions)
        return _Files(self.labels, [self.paths[k] for k in chosen], [self.classes[k] for k in chosen])


class _Reader:
    """Decodes on a thread for each core: Pillow lets other threads run while it decodes and resizes."""

    def __init__(self, side: int) -> None:
        self.side = side
        self._transform = Compose([Resize(resized_shorter_side(side)), CenterCrop(side), PILToTensor()])
        self._pool = ThreadPoolExecutor(os.cpu_count())

    def read(self, paths: Sequence[str]) -> tuple[Tensor, list[str]]:
        """The images of `paths` that can be read, in order, and a line for each that can't."""
        results = list(self._pool.map(self._read_one, paths))
        images = [result for result in results if isinstance(result, Tensor)]
        pixels = torch.stack(images) if images else torch.empty(0, 3, self.side, self.side, dtype=torch.uint8)
        return pixels, [result for result in results if isinstance(result, str)]

    def _read_one(self, path: str) -> Tensor | str:
        try:
            return self._transform(pil_loader(path))
        except MemoryError:
            raise
        except Exception as error:  # noqa: BLE001 - Pillow raises whatever damaged bytes make it trip over
            return f"{path} ({error})"


def _split(folder: Path) -> tuple[_Files, _Files]:
    train_folder, val_folder = folder / "train", folder / "val"
    # A class may be called `train` too: then its folder has images, not folders.
    if not _has_folders(train_folder):
        if _has_folders(val_folder):
            raise ValueError(f"{folder} has a folder val but none called train with class folders; expected both")
        return _fifth_held_out(_files(folder, least=2))
    if not val_folder.is_dir():
        return _fifth_held_out(_files(train_folder, least=2))
    train, held_out = _files(train_folder, least=2), _files(val_folder, least=1)
    if train.labels != held_out.labels:
        differing = sorted(set(train.labels) ^ set(held_out.labels))
        raise ValueError(
            f"{train_folder} and {val_folder} must have the same class folders; only one of them has {_some(differing)}"
        )
    return train, held_out


def _has_folders(folder: Path) -> bool:
    return folder.is_dir() and any(entry.is_dir() for entry in folder.iterdir())


def _files(folder: Path, *, least: int) -> _Files:
    """The image files in `folder`, at least `least` of each class."""
    layout = f"expected a folder of images for each class, {folder}/CLASS/IMAGE"
    if not _has_folders(folder):
        raise ValueError(f"{folder} has no folders; {layout}")
    found = ImageFolder(folder, allow_empty=True)
    if len(found.classes) < 2:
        raise ValueError(f"{folder} has one class folder, {found.classes[0]}; at least 2 classes are needed; {layout}")
    counts = Counter(found.targets)
    if empty := [name for index, name in enumerate(found.classes) if not counts[index]]:
        raise ValueError(
            f"{folder} has folders without an image ({', '.join(extension[1:] for extension in IMG_EXTENSIONS)}): "
            f"{_some(empty)}; fill or remove them"
        )
    if few := [name for index, name in enumerate(found.classes) if counts[index] < least]:
        raise ValueError(f"{folder} has classes of fewer than {least} images: {_some(few)}; add some or remove them")
    return _Files(found.classes, [path for path, _ in found.samples], found.targets)


def _fifth_held_out(files: _Files) -> tuple[_Files, _Files]:
    generator = torch.Generator().manual_seed(0)
    classes = torch.tensor(files.classes)
    held_out: set[int] = set()
    for index in range(len(files.labels)):
        positions = (classes == index).nonzero().flatten()
        shuffled = positions[torch.randperm(len(positions), generator=generator)]
        held_out.update(shuffled[: max(1, round(_HELD_OUT_SHARE * len(positions)))].tolist())
    return files.pick(set(range(len(files.paths))) - held_out), files.pick(held_out)


def _read_all(
    parts: Sequence[_Files], reader: _Reader, histogram: PixelHistogram, on_read: OnRead | None, *, keep: bool
) -> list[Images]:
    """Decode every file once; the first part's pixels are counted in `histogram`."""
    total = sum(len(part.paths) for part in parts)
    done = 0
    unreadable: list[str] = []
    all_images: list[Images] = []
    for part in parts:
        kept = torch.empty(len(part.paths) if keep else 0, 3, reader.side, reader.side, dtype=torch.uint8)
        for start in range(0, len(part.paths), _ROWS_AT_ONCE):
            paths = part.paths[start : start + _ROWS_AT_ONCE]
            pixels, faults = reader.read(paths)
            unreadable += faults
            if part is parts[0]:
                histogram.add(pixels)
            if keep and not faults:
                kept[start : start + len(paths)] = pixels
            done += len(paths)
            if on_read is not None:
                on_read(done, total)
        all_images.append(kept if keep else ImageFiles(part.paths, reader))
    _check_readable(unreadable)
    return all_images


def _check_readable(unreadable: Sequence[str]) -> None:
    if unreadable:
        raise ValueError(f"{len(unreadable)} images can't be read: {_some(unreadable)}; mend or remove them")


def _fingerprint(folder: Path, paths: Sequence[str]) -> str:
    digest = hashlib.sha256()
    for path in sorted(paths):
        digest.update(f"{Path(path).relative_to(folder).as_posix()}\0{Path(path).stat().st_size}\0".encode())
    return f"{len(paths)} files, names and sizes {digest.hexdigest()[:16]}"


def _some(items: Sequence[str]) -> str:
    rest = len(items) - _NAMES_SHOWN
    return ", ".join(items[:_NAMES_SHOWN]) + (f" and {rest} more" if rest > 0 else "")
