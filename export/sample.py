"""The images that an export is verified and calibrated on: a folder of the user's, or generated ones."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from fuseline.export.checkpoint.wrapper_prefixes import printable
from fuseline.serve.errors import ImageError, InputError
from fuseline.serve.images import decode_for, image_size
from fuseline.serve.model_package import InputSpec
from fuseline.serve.precision import PRECISIONS

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")


@dataclass(frozen=True, slots=True)
class Sample:
    """Images on which artifacts are verified."""

    pixels: NDArray[np.uint8]
    """(n, height, width, channels), as they enter the network."""
    names: tuple[str, ...]
    source: str
    """Where the images come from, for people."""

    def judging(self, precision: str) -> NDArray[np.bool_]:
        """Return a mask (n,) of the images that an artifact of `precision` is judged by.

        A quantised artifact is judged by every other image, as it is calibrated on the rest. In the sorted names of a
        folder, every other image is half of every class.
        """
        images = len(self.pixels)
        return np.arange(images) % 2 == 1 if PRECISIONS[precision].quantised else np.ones(images, bool)


@dataclass(frozen=True, slots=True)
class ImageFolder:
    """Images in a folder and its subfolders, of which only the headers were read."""

    folder: Path
    files: tuple[Path, ...]
    """Paths in the order of their names, evenly spread over all images if there are more than were wanted."""
    sizes: tuple[tuple[int, int], ...]
    """(height, width) in pixels of each file."""

    @property
    def shared_size(self) -> tuple[int, int] | None:
        """(height, width) in pixels that all images have; None if they differ."""
        return self.sizes[0] if len(set(self.sizes)) == 1 else None

    def enlarged_for(self, input_spec: InputSpec) -> int:
        """Return the number of images that are smaller than what they are resized to."""
        return sum(min(size) < input_spec.preprocessing.resize_shorter_side for size in self.sizes)

    def spread(self, count: int) -> NDArray[np.int64]:
        """Return indices of at most `count` images from all over the folder, as its subfolders are often classes."""
        return np.linspace(0, len(self.files) - 1, min(count, len(self.files))).round().astype(np.int64)

    def pixels(self, input_spec: InputSpec, indices: Sequence[int] | NDArray[np.int64]) -> NDArray[np.uint8]:
        """Return the pixels (n, height, width, channels) of the files at `indices`, as they enter the network.

        Raises:
            ImageError: a file can't be decoded; it is named.
            InputError: a file can't be read.
        """
        pixels = np.empty((len(indices), *input_spec.pixel_shape), np.uint8)
        for row, index in enumerate(indices):
            path = self.files[index]
            try:
                pixels[row] = decode_for(input_spec, _read(path))
            except ImageError as error:
                raise ImageError(f"--images: {path}: {error}") from error
        return pixels

    def sample(self, input_spec: InputSpec) -> Sample:
        """Return all images, decoded. Raises as `pixels` does."""
        names = tuple(printable(str(path.relative_to(self.folder))) for path in self.files)
        source = printable(f"{len(names)} images of {self.folder}")
        return Sample(self.pixels(input_spec, range(len(self.files))), names, source)


def image_folder(folder: Path, max_images: int) -> ImageFolder:
    """Return up to `max_images` images of `folder`, found recursively, evenly spread over their sorted names.

    Raises:
        InputError: the folder is missing or has no image, or an image can't be read.
        ImageError: the header of an image is damaged; the file is named.
    """
    if not folder.is_dir():
        raise InputError(f"--images {folder}: there is no such folder")
    files = sorted(_image_files(folder))
    if not files:
        raise InputError(f"--images {folder}: no {', '.join(IMAGE_SUFFIXES)} file in it or its subfolders")
    if len(files) > max_images:
        files = [files[index] for index in np.linspace(0, len(files) - 1, max_images).round().astype(int)]
    sizes = []
    for path in files:
        try:
            sizes.append(image_size(_read(path)))
        except ImageError as error:
            raise ImageError(f"--images: {path}: {error}") from error
    return ImageFolder(folder, tuple(files), tuple(sizes))


def _image_files(folder: Path) -> Iterator[Path]:
    """Yield the images in `folder`, also behind links, as data sets are often folders of links; each folder once.

    Hidden files and folders are left out: thumbnails, notebooks' checkpoints, macOS's `._cat.jpg` and `__MACOSX`.
    """
    seen = set()
    for place, folders, names in os.walk(folder, followlinks=True):
        if (real := os.path.realpath(place)) in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not is_hidden(name))
        paths = (Path(place, name) for name in names if not is_hidden(name))
        yield from (path for path in paths if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file())


def is_hidden(name: str) -> bool:
    """Return whether a file or folder called `name` belongs to a system or a tool and not to the user."""
    return name.startswith(".") or name == "__MACOSX"


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"--images: {path} can't be read: {error.strerror}") from error


def generated_sample(input_spec: InputSpec, count: int, seed: int = 0) -> Sample:
    """Return `count` generated images: random colour fields, coarse and fine, as smooth and as busy as photographs.

    They show arithmetic faults, but not what a network does on its own domain; the report says so.
    """
    generator = np.random.default_rng(seed)
    height, width, channels = input_spec.pixel_shape
    pixels = np.empty((count, height, width, channels), np.uint8)
    for row in range(count):
        total = np.zeros((1, channels, height, width), np.float32)
        for cells in (2, 4, 8, 16, 32):
            noise = torch.from_numpy(generator.normal(size=(1, channels, cells, cells)).astype(np.float32))
            # Amplitude falls as 1/frequency, as in natural images (Field 1987).
            total += torch.nn.functional.interpolate(noise, (height, width), mode="bicubic").numpy() * (2.0 / cells)
        brightness, contrast = generator.uniform(60, 200), generator.uniform(20, 90)
        pixels[row] = np.clip(total[0].transpose(1, 2, 0) * contrast + brightness, 0, 255).astype(np.uint8)
    return Sample(pixels, tuple(f"generated {row}" for row in range(count)), f"{count} generated images")
