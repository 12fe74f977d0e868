"""The engines that are compared: each turns the same uint8 pixels into logits, in this process.

| name | what |
|---|---|
| eager | PyTorch FP32 as the training script has it: unfolded, NCHW, from float32 pixels that are normalised already |
| eager-channels-last | the same, weights and pixels in channels_last |
| eager-bf16 | the same in channels_last, under autocast to bfloat16; on CPUs with BF16 units only |
| compiled, compiled-channels-last, compiled-bf16 | these three through torch.compile as it is, for each batch size |
| folded | PyTorch FP32 after folding, channels_last, from uint8 |
| onnxruntime, openvino, tensorrt | the backends that serve, from uint8 |
| onnxruntime-int8, openvino-int8 | the same with the package's INT8 graph, if it has one |
| openvino-bf16 | the same with the FP32 graph computed in BF16, on CPUs that can |

PyTorch that isn't folded is spared the normalisation, which the others do: the ratios to it are never flattered.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fuseline.benchmarks.harness.subject import Subject
from fuseline.serve.backends.base import Infer
from fuseline.serve.backends.padded import ToRows
from fuseline.serve.backends.registry import BACKENDS, CPU_BACKENDS, REGISTRY, title_of
from fuseline.serve.errors import BackendUnavailableError
from fuseline.serve.process.cpu import this_cpu


@dataclass(frozen=True, slots=True)
class _PyTorch:
    """One way to run a training script's network in PyTorch."""

    title: str
    channels_last: bool = False
    """Whether weights and pixels lie in channels_last, or else in NCHW."""
    bf16: bool = False
    """Whether it runs under autocast to bfloat16."""
    compiled: bool = False

    @property
    def precision(self) -> str:
        return "bf16" if self.bf16 else "fp32"


_PYTORCH = {
    "eager": _PyTorch("eager PyTorch FP32"),
    "eager-channels-last": _PyTorch("eager PyTorch FP32, channels_last", channels_last=True),
    "eager-bf16": _PyTorch("eager PyTorch BF16, channels_last", channels_last=True, bf16=True),
    "compiled": _PyTorch("PyTorch FP32, torch.compile", compiled=True),
    "compiled-channels-last": _PyTorch("PyTorch FP32, torch.compile, channels_last", channels_last=True, compiled=True),
    "compiled-bf16": _PyTorch(
        "PyTorch BF16, torch.compile, channels_last", channels_last=True, bf16=True, compiled=True
    ),
}
PYTORCH = tuple(_PYTORCH)
"""What PyTorch users have without Fuseline; the best of them is found in each run. The first is the baseline."""
INT8_CONTENDERS = {f"{name}-int8": name for name in CPU_BACKENDS}
"""Name to backend."""
BF16_CONTENDERS = {f"{entry.name}-bf16": entry.name for entry in REGISTRY if "bf16" in entry.rounds_to}
"""Name to backend."""
NEED_CHECKPOINT = (*PYTORCH, "folded")
_ON_GPUS = tuple(name for name in BACKENDS if name not in CPU_BACKENDS)
CONTENDERS = (*NEED_CHECKPOINT, *CPU_BACKENDS, *INT8_CONTENDERS, *BF16_CONTENDERS, *_ON_GPUS)
TITLES = {
    **{name: pytorch.title for name, pytorch in _PYTORCH.items()},
    "folded": "PyTorch FP32, folded, channels_last",
    **{name: title_of(name) for name in CPU_BACKENDS},
    **{name: f"{title_of(backend)} INT8" for name, backend in INT8_CONTENDERS.items()},
    **{name: f"{title_of(backend)} BF16" for name, backend in BF16_CONTENDERS.items()},
    **{name: title_of(name) for name in _ON_GPUS},
}

TELL_PRECISION = (*NEED_CHECKPOINT, *INT8_CONTENDERS, *BF16_CONTENDERS)
"""Those whose titles say in what they compute."""


def contender_of(backend: str, precision: str) -> str:
    """Return the contender that is `backend` in `precision`; it is one of `CONTENDERS` if the backend computes that."""
    return backend if precision == "fp32" else f"{backend}-{precision}"


Run = Callable[[], NDArray[np.float32]]


@dataclass(frozen=True, slots=True)
class Engine:
    """One loaded contender."""

    name: str
    """One of `CONTENDERS`; where `auto` was asked for, the one that was chosen."""
    precision: str
    device: str
    """The backend's own description; PyTorch runs on the CPU here."""
    prepare: Callable[[NDArray[np.uint8]], Run]
    """Pixels (rows, height, width, channels) to the call that is timed, which returns logits (rows, classes)."""
    open_lanes: Callable[[int], tuple[Infer, ...]] | None = None
    """Opens so many instances of the backend side by side; each is called by one thread. None: it has no lanes."""
    to_rows: ToRows = lambda pixels: pixels
    """Turns pixels into the rows that lanes take."""


def open_engine(name: str, subject: Subject, threads: int = 0) -> Engine:
    """Load contender `name`, or the backend that `auto` chooses, with `threads` CPU threads (0: its own default).

    Raises:
        BackendUnavailableError: it can't run here, or needs a checkpoint and there is none.
        VerificationError: a backend's logits are not those that the package holds from eager PyTorch.
        FuselineError: the package or the checkpoint can't be loaded.
    """
    if name not in NEED_CHECKPOINT:
        return _open_backend(name, subject, threads)
    if subject.checkpoint is None:
        raise BackendUnavailableError("a package holds no PyTorch model; --checkpoint FILE names its checkpoint")
    return _open_pytorch(name, subject, threads)


def _open_backend(name: str, subject: Subject, threads: int) -> Engine:
    from fuseline.serve.backends import open_backend
    from fuseline.serve.batching.policy import DEFAULT_BUCKETS
    from fuseline.serve.input_rows import row_maker
    from fuseline.serve.reference import check_reference

    # A backend that has a contender in BF16 too is in FP32 itself, whatever `auto` would be here.
    by_name = {**dict.fromkeys(INT8_CONTENDERS, "int8"), **dict.fromkeys(BF16_CONTENDERS, "bf16")}
    precision = by_name.get(name, "fp32" if name in BF16_CONTENDERS.values() else "auto")
    backend, _ = open_backend(
        subject.package,
        buckets=DEFAULT_BUCKETS,
        backend={**INT8_CONTENDERS, **BF16_CONTENDERS}.get(name, name),
        precision=precision,
        threads=threads,
    )
    check_reference(backend, subject.package)

    to_rows = row_maker(subject.package.manifest)

    def prepare(pixels: NDArray[np.uint8]) -> Run:
        rows = to_rows(pixels)
        return lambda: backend.infer(rows)

    return Engine(
        name if name in by_name else backend.name,
        backend.precision,
        backend.device,
        prepare,
        backend.open_lanes,
        to_rows,
    )


def _open_pytorch(name: str, subject: Subject, threads: int) -> Engine:
    import torch

    from fuseline.export.loading.loading import NetworkSource, network_of, read_source

    assert subject.checkpoint is not None
    if threads:
        torch.set_num_threads(threads)
    source = NetworkSource(subject.checkpoint)
    network = network_of(read_source(source), source)
    normalization = subject.package.manifest.normalization

    if name in _PYTORCH:
        return _as_trained(name, network, normalization)

    body, mean = _folded(network, normalization)

    def prepare_folded(pixels: NDArray[np.uint8]) -> Run:
        image = torch.from_numpy(pixels)

        def run() -> NDArray[np.float32]:
            with torch.inference_mode():
                # A permuted NHWC batch is channels_last already.
                logits: NDArray[np.float32] = body(image.permute(0, 3, 1, 2).float() - mean).numpy()
            return logits

        return run

    return Engine(name, "fp32", "CPU", prepare_folded)


def _as_trained(name: str, network: Any, normalization: Any) -> Engine:
    """Return the contender `name` of `_PYTORCH`."""
    import torch

    from fuseline.export.eager import normalised

    way = _PYTORCH[name]
    if way.bf16 and not any("bf16" in feature for feature in this_cpu().features or ()):
        # Computed in steps of FP32 it is far slower than FP32: no row that could be the best.
        raise BackendUnavailableError("this CPU tells of no BF16 units (avx512_bf16, amx_bf16, or bf16 on Arm)")
    layout = torch.channels_last if way.channels_last else torch.contiguous_format
    module = as_its_author_wrote_it(network).to(memory_format=layout)
    if way.compiled:
        # Its pool of compilers would outlive this process.
        torch._inductor.config.compile_threads = 1
        module = torch.compile(module, dynamic=False)

    def prepare(pixels: NDArray[np.uint8]) -> Run:
        images = normalised(pixels, normalization).contiguous(memory_format=layout)

        def run() -> NDArray[np.float32]:
            with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=way.bf16):
                logits: NDArray[np.float32] = module(images).float().numpy()
            return logits

        return run

    return Engine(name, way.precision, "CPU", prepare)


def as_its_author_wrote_it(network: Any) -> Any:
    """The module of torchvision itself where it is one of its networks: its ReLUs work in place, which is faster."""
    family, _, architecture = network.architecture.partition(" ")
    if family != "torchvision":
        return network.module
    import torchvision

    module = torchvision.models.get_model(architecture, weights=None, num_classes=network.classes)
    module.load_state_dict(network.module.state_dict())
    return module.eval()


def _folded(network: Any, normalization: Any) -> tuple[Any, Any]:
    """The folded network in channels_last and what is subtracted from its pixels, (1, channels, 1, 1)."""
    import torch

    from fuseline.export.folding.fold import fold_network

    folded = fold_network(
        network.module,
        mean=normalization.mean,
        std=normalization.std,
        probe=torch.zeros((1, network.in_channels, *network.usual_input_size)),
    )
    assert folded.pixel_mean is not None
    mean = torch.tensor(folded.pixel_mean).reshape(1, -1, 1, 1)
    return folded.module.to(memory_format=torch.channels_last), mean
