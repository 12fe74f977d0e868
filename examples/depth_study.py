"""What shortcuts do to a network of 50 layers: gradient norms by layer, and what one deleted block or layer costs.

    python examples/depth_study.py -o build/depth

Two networks of 6n + 2 = 50 layers (He et al. 2015, https://arxiv.org/abs/1512.03385, section 4.2) with the same
initial weights, the same batches and the same settings; the shortcuts have no parameters, so they are the only
difference. Measured are

1. the norm of the loss's gradient for the weights of each layer, at initialisation and after the training;
2. the held-out accuracy with one piece deleted from the trained network, without any training afterwards (Veit, Wilber
   and Belongie 2016, https://arxiv.org/abs/1605.06431): of the ResNet one residual block, two layers whose shortcut
   stays; of the plain network one layer. What changes the shape can't be deleted from the plain network and is left
   out; from the ResNet it can, as its shortcut changes the shape too.

The training is short, on scikit-learn's digits at 16 x 16 pixels. Writes depth_study.csv and depth_study.png.
"""

import csv
import os
from copy import deepcopy
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from statistics import median
from typing import Annotated

if __name__ == "__main__":
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as in train.py

import torch
import typer
from data import LabelledImages, load_digits
from deletions import deletions_of
from depth_plot import draw
from listeners import Listener, listener_for
from models import CifarResNet, Subsampling, no_shortcut, with_he_weights
from pixels import normalise
from rich.console import Console
from torch import nn
from torch.nn import functional
from train import held_out_accuracy

SHORTCUTS = {"ResNet": Subsampling, "plain": no_shortcut}
"""Name of each network, and its shortcuts."""


@dataclass(frozen=True)
class Study:
    """The settings, the same for both networks."""

    steps: int = 150
    seed: int = 0
    blocks_per_stage: int = 8
    """n in 6n + 2 layers."""
    width: int = 8
    side: int = 16
    """Of the input, in pixels."""
    batch_rows: int = 128
    learning_rate: float = 0.1
    """At first; it falls to 0 along a cosine."""
    gradient_rows: int = 256
    """Training images over which the loss is averaged whose gradient is measured."""

    @property
    def layers(self) -> int:
        """Layers with weights, as He et al. count them."""
        return 6 * self.blocks_per_stage + 2


@dataclass(frozen=True)
class Measurement:
    """A row of the CSV."""

    network: str
    measure: str
    """`gradient_norm` (L2), `accuracy` of the whole network, or `accuracy_lost` by a deletion, both as shares of 1."""
    steps: int
    """Training steps done before it was measured."""
    layer: str
    """The layer whose weights the gradient is for, or what was deleted; empty for the whole network."""
    depth: int
    """Position of that layer, or of the first one deleted, from 1 on; 0 for the whole network."""
    layers_deleted: int
    value: float


def measure(study: Study, listener: Listener) -> list[Measurement]:
    """Train both networks and measure them. Equal studies give equal measurements on the same machine.

    Raises:
        FloatingPointError: a loss became infinite or NaN.
    """
    data = load_digits(study.side)
    measurements = []
    for network, make_shortcut in SHORTCUTS.items():
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(study.seed)
            blocks = (study.blocks_per_stage,) * 3
            model = with_he_weights(CifarResNet(blocks, study.width, len(data.labels), make_shortcut))
        measurements += _gradient_norms(model, network, 0, data, study)
        _train(model, network, data, study, listener)
        measurements += _gradient_norms(model, network, study.steps, data, study)
        measurements += _accuracies(model, network, data, study, listener)
    return measurements


def write_csv(measurements: list[Measurement], path: Path) -> None:
    """Write a line for each of `measurements` under a line of names."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(field.name for field in fields(Measurement))
        writer.writerows(astuple(each) for each in measurements)


def summary(measurements: list[Measurement], network: str) -> list[str]:
    """What the figures of `network` come to, in lines."""
    own = [each for each in measurements if each.network == network]
    lines = []
    for steps in sorted({each.steps for each in own}):
        norms = [each.value for each in own if each.measure == "gradient_norm" and each.steps == steps]
        lines.append(
            f"{network}, gradient norm after {steps} steps: {norms[0]:.2g} in the first layer, {norms[-2]:.2g} in the "
            f"last convolution; {min(norms):.2g} to {max(norms):.2g} in all"
        )
    (accuracy,) = [each.value for each in own if each.measure == "accuracy"]
    deleted = [each for each in own if each.measure == "accuracy_lost"]
    lost = [each.value for each in deleted]
    what = "block of 2 layers" if deleted[0].layers_deleted == 2 else "layer"
    lines.append(
        f"{network}, held-out accuracy {accuracy:.1%}; with one {what} deleted it loses {100 * min(lost):.1f} to "
        f"{100 * max(lost):.1f} points, median {100 * median(lost):.1f}, of {len(lost)} deletions"
    )
    return lines


def _gradient_norms(
    model: nn.Module, network: str, steps: int, data: LabelledImages, study: Study
) -> list[Measurement]:
    # A copy: the forward pass in training mode, which training has too, moves BatchNorm's running statistics.
    model = deepcopy(model).train()
    rows = torch.arange(min(study.gradient_rows, len(data.train_images)))
    model.zero_grad()
    _loss(model, data, rows).backward()
    return [
        Measurement(network, "gradient_norm", steps, name, depth, 0, float(module.weight.grad.norm()))
        for depth, (name, module) in enumerate(_layers(model), start=1)
    ]


def _layers(model: nn.Module) -> list[tuple[str, nn.Module]]:
    return [(name, module) for name, module in model.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)]


def _train(model: nn.Module, network: str, data: LabelledImages, study: Study, listener: Listener) -> None:
    optimizer = torch.optim.SGD(model.parameters(), study.learning_rate, momentum=0.9, weight_decay=5e-4)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=study.steps)
    generator = torch.Generator().manual_seed(study.seed)
    model.train()
    rest: list[torch.Tensor] = []
    for step in range(1, study.steps + 1):
        rest = rest or list(torch.randperm(len(data.train_images), generator=generator).split(study.batch_rows))
        loss = _loss(model, data, rest.pop(0))
        if not torch.isfinite(loss):
            raise FloatingPointError(f"the loss of the {network} network became {loss.item()} in step {step}")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
        listener.progress(f"training the {network} network", step, study.steps)


def _loss(model: nn.Module, data: LabelledImages, rows: torch.Tensor) -> torch.Tensor:
    logits = model(normalise(data.train_images[rows], data.mean, data.std))
    return functional.cross_entropy(logits, data.train_classes[rows])


def _accuracies(
    model: CifarResNet, network: str, data: LabelledImages, study: Study, listener: Listener
) -> list[Measurement]:
    whole = held_out_accuracy(model, data)
    measurements = [Measurement(network, "accuracy", study.steps, "", 0, 0, whole)]
    depths = {name: depth for depth, (name, _) in enumerate(_layers(model), start=1)}
    deletions = deletions_of(model)
    for done, deletion in enumerate(deletions, start=1):
        with deletion.applied():
            lost = whole - held_out_accuracy(model, data)
        depth = depths[deletion.first_layer]
        measurements.append(
            Measurement(network, "accuracy_lost", study.steps, deletion.name, depth, deletion.layers, lost)
        )
        listener.progress(f"deleting from the {network} network", done, len(deletions))
    return measurements


def main(
    *,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", file_okay=False, help="For the CSV and the PNG.")],
    steps: Annotated[int, typer.Option(min=1, help="Of the training, with 128 images each.")] = Study.steps,
    seed: Annotated[int, typer.Option(min=0, help="Of the weights and batches.")] = Study.seed,
) -> None:
    """Compare a plain network of 50 layers with a ResNet of 50 layers: gradients by layer, and deletions."""
    study = Study(steps=steps, seed=seed)
    try:
        out.mkdir(parents=True, exist_ok=True)
        with listener_for(Console()) as listener:
            measurements = measure(study, listener)
        write_csv(measurements, out / "depth_study.csv")
        draw(measurements, study, out / "depth_study.png")
    except (FloatingPointError, OSError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from error
    except KeyboardInterrupt:
        typer.echo("interrupted; nothing was written", err=True)
        raise typer.Exit(130) from None
    for network in SHORTCUTS:
        for line in summary(measurements, network):
            typer.echo(line)
    typer.echo(f"written: {out / 'depth_study.csv'}, {out / 'depth_study.png'}")


if __name__ == "__main__":
    typer.run(main)
