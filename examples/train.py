"""Train a small ResNet and write a checkpoint that `export` takes as it is.

    python examples/train.py --model resnet18-cifar --width 16 --data digits --epochs 15 -o digits.pt

The recipe is the usual one for CIFAR: random crop after padding by 4, horizontal flip where the mirror image is of the
same class, batches of 128, SGD at 0.1 with momentum 0.9 and weight decay 5e-4, a cosine down to 0. After each epoch the
checkpoint is written; the same command after an interruption goes on from there and ends at the same weights as though
it had never stopped. The accuracy is that of the last epoch: no epoch is chosen by its score on the held-out images.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Protocol

if __name__ == "__main__":
    # Else OpenMP's threads wait for each other by spinning, which makes training several times slower where other
    # processes want the same cores. It is read when torch is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
import typer
from checkpoints import load_checkpoint, save_checkpoint
from data import DATASETS, SIDE, LabelledImages, load_data
from models import MODELS, build_model
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.nn import functional

CROP_PADDING = 4
"""Pixels of black around an image before the crop."""


@dataclass(frozen=True)
class Recipe:
    """The settings of a training. Equal recipes give equal weights on the same machine."""

    model: str
    data: str
    width: int
    epochs: int
    learning_rate: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    batch_rows: int = 128
    seed: int = 0


class Listener(Protocol):
    """Who is told how far a training is."""

    def batches_done(self, done: int, total: int) -> None:
        """`done` of the `total` batches of the whole training are learned."""

    def say(self, line: str) -> None:
        """Something worth a line."""


def train(recipe: Recipe, out: Path, listener: Listener, *, restart: bool = False) -> dict[str, Any]:
    """Train by `recipe`, writing `out` after each epoch, and return the last checkpoint.

    If `out` holds an earlier epoch of the same recipe, training goes on from there; if it holds the last, nothing is
    done. `restart` begins anew whatever it holds.

    Raises:
        ValueError: the recipe names what is not there, or `out` is something else than an epoch of this recipe.
        FloatingPointError: the loss became infinite or NaN; `out` keeps the epoch before.
        OSError: `out` can't be written.
    """
    data = load_data(recipe.data)
    mean, std = data.mean_and_std()
    model = _fresh_model(recipe, classes=len(data.labels))
    optimizer = torch.optim.SGD(
        model.parameters(), recipe.learning_rate, momentum=recipe.momentum, weight_decay=recipe.weight_decay
    )
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=recipe.epochs)
    checkpoint: dict[str, Any] = {"epoch": 0}
    if out.exists() and not restart:
        checkpoint = _load_same_recipe(out, recipe)
        model.load_state_dict(checkpoint["state_dict"])
        optimizer.load_state_dict(checkpoint["optimizer"])
        scheduler.load_state_dict(checkpoint["scheduler"])
        rest = "nothing is left to do" if checkpoint["epoch"] == recipe.epochs else "going on from there"
        listener.say(f"{out} holds epoch {checkpoint['epoch']} of {recipe.epochs}; {rest}")
    out.parent.mkdir(parents=True, exist_ok=True)
    for epoch in range(checkpoint["epoch"] + 1, recipe.epochs + 1):
        loss = _train_epoch(model, optimizer, data, recipe, epoch=epoch, listener=listener)
        scheduler.step()
        accuracy = held_out_accuracy(model, data)
        checkpoint = {
            "state_dict": model.state_dict(),
            "labels": data.labels,
            "mean": mean,
            "std": std,
            "input_size": SIDE,
            "epoch": epoch,
            "accuracy": accuracy,
            "optimizer": optimizer.state_dict(),
            "scheduler": scheduler.state_dict(),
            "recipe": asdict(recipe),
        }
        save_checkpoint(checkpoint, out)
        listener.say(f"epoch {epoch:>3} of {recipe.epochs}   loss {loss:.4f}   held-out accuracy {accuracy:.2%}")
    return checkpoint


def normalise(pixels: Tensor, mean: list[float], std: list[float]) -> Tensor:
    """Turn uint8 RGB `pixels` (rows, 3, height, width) into float32 with about zero mean and unit variance."""
    scaled = pixels.to(torch.float32) / 255
    return (scaled - torch.tensor(mean).view(1, 3, 1, 1)) / torch.tensor(std).view(1, 3, 1, 1)


def random_crops(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Shift each of `pixels` (rows, channels, height, width) by up to `CROP_PADDING` both ways; black comes in."""
    rows, channels, height, width = pixels.shape
    padded = functional.pad(pixels, (CROP_PADDING,) * 4)
    top, left = torch.randint(0, 2 * CROP_PADDING + 1, (2, rows, 1), generator=generator)
    y = (top + torch.arange(height))[:, None, :, None]
    x = (left + torch.arange(width))[:, None, None, :]
    return padded[torch.arange(rows)[:, None, None, None], torch.arange(channels)[None, :, None, None], y, x]


def random_flips(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Mirror each of `pixels` (rows, channels, height, width) left to right, or not, at even odds."""
    mirrored = torch.rand(len(pixels), generator=generator) < 0.5
    return torch.where(mirrored[:, None, None, None], pixels.flip(3), pixels)


def held_out_accuracy(model: nn.Module, data: LabelledImages) -> float:
    """Share of the held-out images that `model` gets right; leaves it in evaluation mode."""
    mean, std = data.mean_and_std()
    model.eval()
    with torch.inference_mode():
        logits = torch.cat([model(normalise(part, mean, std)) for part in data.held_out_images.split(256)])
    return float((logits.argmax(dim=1) == data.held_out_classes).double().mean())


def _fresh_model(recipe: Recipe, classes: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        # Not in channels_last, though it is faster on a CPU: there the gradient of a 1x1 convolution with stride 2 and
        # 8 channels corrupts memory at some batch sizes (torch 2.15.0, 29 rows).
        return build_model(recipe.model, width=recipe.width, classes=classes)


def _load_same_recipe(path: Path, recipe: Recipe) -> dict[str, Any]:
    checkpoint = load_checkpoint(path)
    theirs, ours = checkpoint["recipe"], asdict(recipe)
    other = [f"{key} {theirs.get(key)}, not {value}" for key, value in ours.items() if theirs.get(key) != value]
    if other:
        raise ValueError(f"{path} was trained with {'; '.join(other)}; --restart replaces it, -o writes elsewhere")
    return checkpoint


def _train_epoch(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    data: LabelledImages,
    recipe: Recipe,
    *,
    epoch: int,
    listener: Listener,
) -> float:
    """Learn every training image once and return the mean loss."""
    # Seeded by the epoch, so that a resumed training sees the same batches and crops as one that never stopped.
    generator = torch.Generator().manual_seed(1_000_003 * recipe.seed + epoch)
    mean, std = data.mean_and_std()
    batches = torch.randperm(len(data.train_images), generator=generator).split(recipe.batch_rows)
    total = 0.0
    model.train()
    for done, rows in enumerate(batches, start=(epoch - 1) * len(batches) + 1):
        pixels = random_crops(data.train_images[rows], generator)
        if data.flip:
            pixels = random_flips(pixels, generator)
        loss = functional.cross_entropy(model(normalise(pixels, mean, std)), data.train_classes[rows])
        if not torch.isfinite(loss):
            raise FloatingPointError(f"the loss became {loss.item()} in epoch {epoch}; lower --learning-rate")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total += loss.item() * len(rows)
        listener.batches_done(done, recipe.epochs * len(batches))
    return total / len(data.train_images)


class PlainLines:
    """Tells a training by lines of text alone."""

    def batches_done(self, done: int, total: int) -> None:
        """Say nothing: a line for each epoch is enough."""

    def say(self, line: str) -> None:
        """Print `line` at once, also into a pipe."""
        print(line, flush=True)


class ProgressBar:
    """Tells a training by lines above a bar."""

    def __init__(self, bar: Progress) -> None:
        self._bar = bar
        self._task = bar.add_task("batches", total=None)

    def batches_done(self, done: int, total: int) -> None:
        """Move the bar."""
        self._bar.update(self._task, completed=done, total=total)

    def say(self, line: str) -> None:
        """Print `line` above the bar."""
        self._bar.console.print(line, highlight=False, markup=False)


@contextmanager
def listener_for(console: Console) -> Iterator[Listener]:
    """A progress bar on a terminal, plain lines elsewhere."""
    if not console.is_terminal:
        yield PlainLines()
        return
    columns = (TextColumn("training"), BarColumn(), TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        yield ProgressBar(bar)


def main(
    *,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE.pt", dir_okay=False, help="The checkpoint.")],
    model: Annotated[str, typer.Option(help=f"One of: {', '.join(sorted(MODELS))}.")] = "resnet18-cifar",
    data: Annotated[str, typer.Option(help=f"One of: {', '.join(sorted(DATASETS))}.")] = "digits",
    width: Annotated[int, typer.Option(min=1, help="Channels of the first stage; the usual network has 64.")] = 64,
    epochs: Annotated[int, typer.Option(min=1)] = 15,
    learning_rate: Annotated[float, typer.Option(min=0, help="Of the first epoch.")] = 0.1,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    restart: Annotated[bool, typer.Option("--restart", help="Begin anew whatever FILE.pt holds.")] = False,
) -> None:
    """Train a ResNet; the same command after an interruption goes on where it was."""
    recipe = Recipe(model=model, data=data, width=width, epochs=epochs, learning_rate=learning_rate, seed=seed)
    with listener_for(Console()) as listener:
        try:
            checkpoint = train(recipe, out, listener, restart=restart)
        except ValueError as error:
            raise typer.BadParameter(str(error)) from error
        except (FloatingPointError, OSError) as error:
            typer.echo(f"error: {error}", err=True)
            raise typer.Exit(1) from error
        except KeyboardInterrupt:
            kept = f"{out} has the last finished epoch" if out.exists() else "no epoch was finished"
            typer.echo(f"interrupted: {kept}; the same command goes on", err=True)
            raise typer.Exit(130) from None
    typer.echo(f"{out}: held-out accuracy {checkpoint['accuracy']:.2%}")


if __name__ == "__main__":
    typer.run(main)
