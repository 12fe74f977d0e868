"""Train a ResNet, or a plain network to compare it with, and write a checkpoint that `export` takes as it is.

    python examples/train.py --model resnet18-cifar --width 16 --data digits --epochs 15 -o digits.pt

The recipe is the usual one for CIFAR: random crop after padding by 4, horizontal flip where the mirror image is of the
same class, batches of 128, SGD at 0.1 with momentum 0.9 and weight decay 5e-4, a cosine down to 0. After each epoch the
checkpoint is written; the same command after an interruption goes on from there and ends at the same weights as though
it had never stopped. The accuracy is that of the last epoch: no epoch is chosen by its score on the held-out images.
"""

import os
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

if __name__ == "__main__":
    # Else OpenMP's threads wait for each other by spinning, which makes training several times slower where other
    # processes want the same cores. It is read when torch is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
import typer
from checkpoints import load_checkpoint, save_checkpoint
from data import NAMED, SIDE, LabelledImages, load_data
from listeners import Listener, listener_for
from models import MODELS, build_model, find_model
from pixels import normalise, random_crops, random_flips
from rich.console import Console
from torch import Tensor, nn
from torch.nn import functional

MIN_INPUT_SIZE, MAX_INPUT_SIZE = 8, 4096
"""Pixels; what `export` accepts."""
EVALUATION_ROWS = 128
"""Images in a batch without gradients."""


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
    input_size: int = SIDE
    """Side of the square input in pixels."""
    flip: bool = True
    """Whether to mirror images where the data set says that the mirror image shows the same class."""


def train(
    recipe: Recipe, out: Path, listener: Listener, *, data_dir: Path = Path("data"), restart: bool = False
) -> dict[str, Any]:
    """Train by `recipe`, writing `out` after each epoch, and return the last checkpoint.

    If `out` holds an earlier epoch of the same recipe and images, training goes on from there; if it holds the last,
    nothing is done. `restart` begins anew whatever it holds. `data_dir` is where cifar10 lies or is downloaded to.

    Raises:
        ValueError: the recipe names what is not there, or `out` is something else than an epoch of this recipe.
        FloatingPointError: the loss became infinite or NaN; `out` keeps the epoch before.
        OSError: `out` can't be written.
    """
    find_model(recipe.model)
    data = load_data(
        recipe.data, input_size=recipe.input_size, data_dir=data_dir, on_read=partial(listener.progress, "reading")
    )
    train_rows, held_out_rows = len(data.train_images), len(data.held_out_images)
    listener.say(f"{train_rows} images of {len(data.labels)} classes to train on, {held_out_rows} held out")
    model = _fresh_model(recipe, classes=len(data.labels))
    optimizer = torch.optim.SGD(
        model.parameters(), recipe.learning_rate, momentum=recipe.momentum, weight_decay=recipe.weight_decay
    )
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=recipe.epochs)
    checkpoint: dict[str, Any] = {"epoch": 0}
    if out.exists() and not restart:
        checkpoint = _load_same_recipe(out, recipe, data)
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
            "mean": data.mean,
            "std": data.std,
            "input_size": recipe.input_size,
            "epoch": epoch,
            "accuracy": accuracy,
            "optimizer": optimizer.state_dict(),
            "scheduler": scheduler.state_dict(),
            "recipe": asdict(recipe),
            "images": data.fingerprint,
        }
        save_checkpoint(checkpoint, out)
        listener.say(f"epoch {epoch:>3} of {recipe.epochs}   loss {loss:.4f}   held-out accuracy {accuracy:.2%}")
    return checkpoint


def held_out_accuracy(model: nn.Module, data: LabelledImages) -> float:
    """Share of the held-out images that `model` gets right; leaves it in evaluation mode."""
    model.eval()
    right = 0
    with torch.inference_mode():
        for rows in torch.arange(len(data.held_out_images)).split(EVALUATION_ROWS):
            logits = model(normalise(data.held_out_images[rows], data.mean, data.std))
            right += int((logits.argmax(dim=1) == data.held_out_classes[rows]).sum())
    return right / len(data.held_out_images)


def _fresh_model(recipe: Recipe, classes: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        # Not in channels_last, though it is faster on a CPU: there the gradient of a 1x1 convolution with stride 2 and
        # 8 channels corrupts memory at some batch sizes (torch 2.15.0, 29 rows).
        return build_model(recipe.model, width=recipe.width, classes=classes)


def _load_same_recipe(path: Path, recipe: Recipe, data: LabelledImages) -> dict[str, Any]:
    checkpoint = load_checkpoint(path)
    theirs, ours = checkpoint["recipe"], asdict(recipe)
    # A folder may be named in many ways; its fingerprint tells whether it holds the same images.
    other = [
        f"{key} {theirs.get(key)}, not {ours[key]}" for key in ours if key != "data" and theirs.get(key) != ours[key]
    ]
    if checkpoint["images"] != data.fingerprint:
        other.append(f"other images ({checkpoint['images']}), not {recipe.data} ({data.fingerprint})")
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
    batches = _batches(torch.randperm(len(data.train_images), generator=generator), recipe.batch_rows)
    total = 0.0
    model.train()
    for done, rows in enumerate(batches, start=(epoch - 1) * len(batches) + 1):
        pixels = random_crops(data.train_images[rows], generator)
        if data.flip and recipe.flip:
            pixels = random_flips(pixels, generator)
        loss = functional.cross_entropy(model(normalise(pixels, data.mean, data.std)), data.train_classes[rows])
        if not torch.isfinite(loss):
            raise FloatingPointError(f"the loss became {loss.item()} in epoch {epoch}; lower --learning-rate")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total += loss.item() * len(rows)
        listener.progress("training", done, recipe.epochs * len(batches))
    return total / len(data.train_images)


def _batches(order: Tensor, rows: int) -> list[Tensor]:
    """`order` in parts of `rows`. A rest of one joins the part before: BatchNorm learns nothing from a single value."""
    parts = list(order.split(rows))
    if len(parts) > 1 and len(parts[-1]) == 1:
        parts[-2:] = [torch.cat(parts[-2:])]
    return parts


def main(
    *,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE.pt", dir_okay=False, help="The checkpoint.")],
    model: Annotated[str, typer.Option(help=f"One of: {', '.join(sorted(MODELS))}.")] = "resnet18-cifar",
    data: Annotated[
        str,
        typer.Option(
            metavar="|".join((*NAMED, "DIR")),
            help="A data set, or a folder with a folder of images for each class, or with train/ and val/ of such.",
        ),
    ] = "digits",
    data_dir: Annotated[Path, typer.Option(file_okay=False, help="Where cifar10 lies, or is downloaded to.")] = Path(
        "data"
    ),
    width: Annotated[
        int | None, typer.Option(min=1, help="Channels of the first stage; 64, of resnet20 16, where not given.")
    ] = None,
    input_size: Annotated[
        int | None,
        typer.Option(
            min=MIN_INPUT_SIZE,
            max=MAX_INPUT_SIZE,
            help="Side in pixels to which a folder's images are resized and cropped; of resnet34 224, else 32, where "
            "not given.",
        ),
    ] = None,
    epochs: Annotated[int, typer.Option(min=1)] = 15,
    learning_rate: Annotated[float, typer.Option(min=0, help="Of the first epoch.")] = 0.1,
    flip: Annotated[
        bool, typer.Option(help="Mirror images; never done with digits, and wrong for letters and road signs.")
    ] = True,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    restart: Annotated[bool, typer.Option("--restart", help="Begin anew whatever FILE.pt holds.")] = False,
) -> None:
    """Train a network; the same command after an interruption goes on where it was."""
    with listener_for(Console()) as listener:
        try:
            usual = find_model(model)
            recipe = Recipe(
                model=model,
                data=data,
                width=width or usual.usual_width,
                epochs=epochs,
                learning_rate=learning_rate,
                seed=seed,
                input_size=input_size or (SIDE if data in NAMED else usual.usual_input_size),
                flip=flip,
            )
            checkpoint = train(recipe, out, listener, data_dir=data_dir, restart=restart)
        except ValueError as error:
            typer.echo(f"error: {error}", err=True)
            raise typer.Exit(2) from error
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
