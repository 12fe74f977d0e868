"""PyTorch as contenders of the GPU benchmark: eager, compiled, and captured in a CUDA graph."""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fuseline.benchmarks.engines.contenders import as_its_author_wrote_it
from fuseline.benchmarks.gpu.contender import CONTENDERS, Device, Prepared
from fuseline.benchmarks.gpu.subject import GpuSubject
from fuseline.serve.errors import BackendUnavailableError
from fuseline.serve.model_package import Normalization

_DTYPES = {"fp32": torch.float32, "tf32": torch.float32, "fp16": torch.float16}
_CAPTURE_WARM_UPS = 3

Network = Callable[[Tensor], Tensor]


class PyTorchContender:
    """`eager`, `eager-tf32`, `eager-fp16`, `compiled` or `graphed`; see `fuseline.benchmarks.gpu.contender.Opened`."""

    def __init__(self, name: str, device: Device, compile_mode: str) -> None:
        """Raises `BackendUnavailableError` if PyTorch has no GPU."""
        if device == "cuda" and not torch.cuda.is_available():
            raise BackendUnavailableError(f"PyTorch {torch.__version__} finds no GPU that it can use")
        self._name = name
        self._device = device
        self._compile_mode = compile_mode
        self._precision = CONTENDERS[name].precision_on(device)
        self._networks: dict[str, Any] = {}
        # The shape of a batch stays: let cuDNN try its algorithms and keep the fastest.
        torch.backends.cudnn.benchmark = True
        if self._precision == "fp32" and device == "cuda":
            torch.backends.cudnn.conv.fp32_precision = "ieee"
            torch.backends.cuda.matmul.fp32_precision = "ieee"

    def prepare(self, subject: GpuSubject, pixels: NDArray[np.uint8]) -> Prepared:
        """See `fuseline.benchmarks.gpu.contender.Opened.prepare`."""
        started = time.monotonic()
        image = torch.from_numpy(pixels).to(self._device)
        forward = self._forward(subject)
        details: dict[str, Any] = {"torch": str(torch.__version__)}
        if self._name == "compiled":
            forward = self._compiled(forward)
            details["compile_mode"] = self._compile_mode
        if self._device == "cuda":
            details["convolutions"] = torch.backends.cudnn.conv.fp32_precision if self._precision != "fp16" else "fp16"
            details["cudnn"] = torch.backends.cudnn.version()
        # Inference tensors and torch.compile's graphs don't go together everywhere; both spare the autograd tape.
        without_tape = torch.no_grad if self._name == "compiled" else torch.inference_mode
        with without_tape():
            call = _captured(forward, image) if self._name == "graphed" else lambda: forward(image)
            latest = call()
        details["ready_s"] = round(time.monotonic() - started, 2)

        def run() -> Tensor:
            nonlocal latest
            with without_tape():
                latest = call()
            return latest

        def resident() -> None:
            run()
            self._wait()

        def release() -> None:
            nonlocal call, latest
            del call, latest
            if self._name == "compiled":
                torch.compiler.reset()
            if self._device == "cuda":
                torch.cuda.empty_cache()

        return Prepared(
            resident=resident,
            resident_logits=lambda: latest.cpu().numpy().copy(),
            host=self._host_call(run, image, pixels, subject) if self._device == "cuda" else None,
            details=details,
            release=release,
        )

    def _host_call(
        self, run: Callable[[], Tensor], image: Tensor, pixels: NDArray[np.uint8], subject: GpuSubject
    ) -> Callable[[], NDArray[np.float32]]:
        """Through pinned memory, as a server that batches in PyTorch would: it gathers a batch there."""
        source = torch.from_numpy(pixels)
        staging = torch.empty_like(source).pin_memory()
        logits = torch.empty((len(pixels), subject.package.manifest.classes), dtype=torch.float32).pin_memory()

        def host() -> NDArray[np.float32]:
            staging.copy_(source)
            image.copy_(staging, non_blocking=True)
            logits.copy_(run(), non_blocking=True)
            self._wait()
            return logits.numpy().copy()

        return host

    def _forward(self, subject: GpuSubject) -> Network:
        network = self._network(subject)
        dtype = _DTYPES[self._precision]
        layout = torch.contiguous_format if self._name in ("eager", "eager-tf32") else torch.channels_last
        mean, scale = _mean_and_scale(subject.package.manifest.normalization, self._device)

        def forward(image: Tensor) -> Tensor:
            planes = image.permute(0, 3, 1, 2)
            # In FP32 as in training, then cast: a pass over the pixels, of the tens that the network makes.
            images = ((planes.float() - mean) * scale).to(dtype, memory_format=layout)
            logits: Tensor = network(images).float()
            return logits

        return forward

    def _network(self, subject: GpuSubject) -> Any:
        if subject.title not in self._networks:
            from fuseline.export.loading.loading import NetworkSource, network_of, read_source

            source = NetworkSource(subject.checkpoint)
            side = (subject.input_side, subject.input_side)
            module = as_its_author_wrote_it(network_of(read_source(source), source, side)).requires_grad_(False)
            layout = torch.contiguous_format if self._name in ("eager", "eager-tf32") else torch.channels_last
            self._networks[subject.title] = module.to(
                self._device, dtype=_DTYPES[self._precision], memory_format=layout
            )
        return self._networks[subject.title]

    def _compiled(self, forward: Network) -> Network:
        # Without a reset the second network counts as recompilations of the first, of which few are allowed; fullgraph
        # makes a fall back to eager an error instead of a slow figure.
        torch.compiler.reset()
        compiled: Network = torch.compile(forward, mode=self._compile_mode, fullgraph=True, dynamic=False)
        return compiled

    def _wait(self) -> None:
        if self._device == "cuda":
            torch.cuda.synchronize()


def _mean_and_scale(normalization: Normalization, device: Device) -> tuple[Tensor, Tensor]:
    mean, std = (
        torch.tensor(values, dtype=torch.float64).reshape(1, -1, 1, 1)
        for values in (normalization.mean, normalization.std)
    )
    return (255 * mean).float().to(device), (1 / (255 * std)).float().to(device)


def _captured(forward: Network, image: Tensor) -> Callable[[], Tensor]:
    """`forward(image)` as a CUDA graph, after warm-up runs on a side stream (PyTorch, notes on CUDA graphs)."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(_CAPTURE_WARM_UPS):
            forward(image)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        logits = forward(image)

    def replay() -> Tensor:
        graph.replay()
        return logits

    return replay
