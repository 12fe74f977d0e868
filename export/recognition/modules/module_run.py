"""One run of a module on pictures of one size: whether it takes them, and which convolutions and pools ran."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from fuseline.export.recognition.modules.logits_trial import logits_of

_ROWS = 2
_ATEN = torch.ops.aten
_WINDOW_POOLS = (_ATEN.avg_pool2d.default, _ATEN.max_pool2d_with_indices.default, _ATEN.max_pool2d.default)
_JOINS = (_ATEN.add.Tensor, _ATEN.add_.Tensor)


@dataclass(frozen=True, slots=True)
class Step:
    """One operator as it ran, on maps (rows, channels, height, width)."""

    kind: str
    """`convolution`, `pool` (of a fixed window), `join` (the sum of two maps, or both in one), `other`."""
    in_height: int
    out_height: int
    kernel: tuple[int, ...] = ()
    """(height, width); () where the operator has no kernel."""
    stride: tuple[int, ...] = ()
    cuts: bool = False
    """Whether the operator is a pool whose windows leave out rows or columns of its map."""


@dataclass(slots=True)
class ModuleRun:
    """One run of a module."""

    steps: list[Step] = field(default_factory=list)
    first_convolution_takes: int | None = None
    """Number of channels that the first convolution takes; None where none was begun."""
    classes: int | None = None
    """Number of logits for each picture; None where the module returned none, see `failure`."""
    failure: str = ""
    """What the module did instead of returning logits, for people."""
    returned_no_rows: bool = False
    """Whether the module ran to its end, but returned something that isn't rows of logits: a map, boxes."""

    @property
    def convolutions(self) -> list[Step]:
        """The convolutions in the order in which they ran."""
        return [step for step in self.steps if step.kind == "convolution"]

    @property
    def last_pool(self) -> Step | None:
        """The last pool of a fixed window, if no convolution ran after it."""
        for step in reversed(self.steps):
            if step.kind in ("convolution", "pool"):
                return step if step.kind == "pool" else None
        return None


def run_module(module: nn.Module, channels: int, size: tuple[int, int]) -> ModuleRun:
    """Run `module` on two grey pictures of `size` (height, width); whatever it raises becomes the run's `failure`."""
    run = ModuleRun()
    images = torch.zeros((_ROWS, channels, *size))
    # In inference mode torch wouldn't decompose convolutions and pools into the few operators that are recorded.
    with torch.no_grad(), warnings.catch_warnings(), _Recorder(run):
        warnings.simplefilter("ignore")
        try:
            returned = module(images)
        except Exception as error:  # noqa: BLE001 the user's code may raise anything
            run.failure = f"it raised {type(error).__name__}: {_first_line(error)}"
            return run
    logits = logits_of(returned)
    if logits is not None and logits.dim() == 2 and len(logits) == _ROWS:
        run.classes = logits.shape[1]
    else:
        came = f"a tensor {tuple(logits.shape)}" if logits is not None else f"a {type(returned).__name__}"
        run.failure = f"it returned {came} for {_ROWS} images"
        run.returned_no_rows = logits is None or logits.dim() != 2
    return run


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records the operators that run, whether modules, functional calls or TorchScript call them."""

    def __init__(self, run: ModuleRun) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._run = run

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func == _ATEN.convolution.default and self._run.first_convolution_takes is None:
            self._run.first_convolution_takes = args[1].shape[1] * args[8]
        given = [tuple(arg.shape) for arg in _tensors(args)]
        result = func(*args, **(kwargs or {}))
        out = result[0] if isinstance(result, tuple) else result
        if given and len(given[0]) == 4 and isinstance(out, Tensor) and out.dim() == 4:
            self._run.steps.append(_step(func, args, given, tuple(out.shape)))
        return result


def _step(func: Any, args: Sequence[Any], given: list[tuple[int, ...]], out: tuple[int, ...]) -> Step:
    heights = (given[0][2], out[2])
    if func == _ATEN.convolution.default:
        return Step("convolution", *heights, kernel=given[1][2:], stride=tuple(args[3]))
    if func in _WINDOW_POOLS:
        kernel = _pair(args[1])
        stride = _pair(args[2]) if len(args) > 2 and args[2] else kernel
        padding = _pair(args[3]) if len(args) > 3 else (0, 0)
        windows = zip(given[0][2:], out[2:], kernel, stride, padding, strict=True)
        cuts = any(side + 2 * pad > (count - 1) * step + window for side, count, window, step, pad in windows)
        return Step("pool", *heights, kernel=kernel, stride=stride, cuts=cuts)
    joins = (func in _JOINS and len(given) == 2 and given[0] == given[1]) or func == _ATEN.cat.default
    return Step("join" if joins else "other", *heights)


def _tensors(args: Sequence[Any]) -> list[Tensor]:
    flat = [item for arg in args for item in (arg if isinstance(arg, list | tuple) else [arg])]
    return [item for item in flat if isinstance(item, Tensor)]


def _pair(values: Any) -> tuple[int, int]:
    values = values if isinstance(values, list | tuple) else [values]
    return int(values[0]), int(values[-1])


def _first_line(error: Exception) -> str:
    return next((line.strip().rstrip(".") for line in str(error).splitlines() if line.strip()), "")
