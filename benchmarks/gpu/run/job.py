"""What a step is told, and how it tells what it finds."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fuseline.benchmarks.gpu.contender import Device
from fuseline.benchmarks.gpu.run.record import Row

Emit = Callable[[Row], None]

TRAINED = Path("checkpoints") / "resnet20-12fca82f.th"
"""A trained CIFAR ResNet-20, in the folder of the job's data."""
PICTURES = Path("cifar10-test")
"""Its pictures beside it, a folder for each class."""
BUNDLE_VARIABLE = "FUSELINE_BUNDLE"
"""Set by a bundle's `activate`: the folder into which it is installed."""


@dataclass(frozen=True, slots=True)
class RunPlan:
    """What is asked for."""

    out: Path
    minutes: float = 10.0
    device: Device = "cuda"
    models: tuple[str, ...] = ("resnet50", "resnet18")
    """Names or checkpoints; the first is exported, served and measured on the CPU too."""
    batches: tuple[int, ...] = (128, 32, 8, 1)
    """Batch sizes in this order: the most telling first."""
    callers: tuple[int, ...] = (256, 64)
    workers: tuple[int, ...] = (1, 8, 4)
    lanes: tuple[int, ...] = (1, 2, 4, 8)
    """Numbers of lanes of a server beside its own choice; on the GPU the first of them."""
    images: tuple[int, ...] = (16, 32)
    """Images of the requests that have several."""
    seconds: float = 2.0
    """Length of each load on a server."""
    steps: tuple[str, ...] = ()
    """Which; empty: all."""


@dataclass(frozen=True, slots=True)
class Job:
    """One step's work, in the process that is its own."""

    plan: RunPlan
    work: Path
    """A folder that lives as long as the run: checkpoints and packages."""
    checkout: Path
    """Folder of `tests` and pyproject.toml."""
    data: Path | None
    """Folder of `TRAINED` and `PICTURES`, if they are here."""
    deadline: float
    """Time, of `time.monotonic`, at which the process is ended."""
    found: dict[str, Any] = field(default_factory=dict)
    """What earlier steps found that later ones build on. What a step adds goes along with its next row, or its end."""

    @property
    def left_s(self) -> float:
        """Seconds until the deadline."""
        return max(0.0, self.deadline - time.monotonic())


class NotHereError(Exception):
    """A step can't run here; the message says why."""
