"""CIFAR-10 (Krizhevsky 2009) from the files that torchvision reads, downloaded where the network allows it."""

import http.client
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from data import LabelledImages, in_memory
from torch import Tensor
from torchvision.datasets import CIFAR10

_TIMEOUT_S = 30.0


def load_cifar10(folder: Path) -> LabelledImages:
    """The 50,000 training images and, held out, the 10,000 test images.

    They are read from `folder`/cifar-10-batches-py/, which comes out of the archive in `folder`; if neither is there,
    torchvision downloads the archive. Every file's MD5 is checked before it is read.

    Raises:
        ValueError: they are not there and can't be downloaded; the message says what to put where.
    """
    train, held_out = _open(folder, train=True), _open(folder, train=False)
    return in_memory(
        labels=train.classes,
        train=_tensors(train),
        held_out=_tensors(held_out),
        flip=True,
        fingerprint="cifar10",
    )


def _open(folder: Path, *, train: bool) -> CIFAR10:
    try:
        return CIFAR10(folder, train=train)
    except RuntimeError:  # not there, or not as it should be
        pass
    try:
        with _network_timeout():
            return CIFAR10(folder, train=train, download=True)
    except (OSError, RuntimeError, http.client.HTTPException) as error:
        raise ValueError(
            f"CIFAR-10 is not in {folder.resolve()} and can't be downloaded from {CIFAR10.url} ({error}). Put the file "
            f"{CIFAR10.filename} (170 MB, MD5 {CIFAR10.tgz_md5}) into the folder {folder.resolve()} and give the same "
            "command again, or name the folder that has it with --data-dir"
        ) from error


def _tensors(dataset: CIFAR10) -> tuple[Tensor, Tensor]:
    images = torch.from_numpy(dataset.data).permute(0, 3, 1, 2).contiguous()
    return images, torch.tensor(dataset.targets)


@contextmanager
def _network_timeout() -> Iterator[None]:
    """A network that swallows packets ends the download too; torchvision sets no bound of its own."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_TIMEOUT_S)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
