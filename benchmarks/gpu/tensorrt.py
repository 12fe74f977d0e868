"""TensorRT, or TensorRT for RTX, as a contender of the GPU benchmark: the code that serves, and a step of it apart."""

import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fuseline.benchmarks.gpu.contender import Prepared
from fuseline.benchmarks.gpu.subject import GpuSubject
from fuseline.serve.backends.engine.builder import build_engine
from fuseline.serve.backends.engine.library import NAMES, engine_from_plan, import_library
from fuseline.serve.backends.engine.target import available_builder
from fuseline.serve.backends.gpu.cuda import Cuda, open_cuda
from fuseline.serve.backends.tensorrt_backend import TensorRTBackend


class TensorRTContender:
    """The package's FP16 graph as an engine for the batch at hand; see `fuseline.benchmarks.gpu.contender.Opened`."""

    def __init__(self, engine_for: str | None = None) -> None:
        """`engine_for`: see `available_builder`.

        Raises:
            BackendUnavailableError: there is no GPU, or no library builds for it.
        """
        self._engine_for = engine_for
        self._cuda: Cuda = open_cuda()
        self._gpu = self._cuda.gpu()
        available_builder(engine_for)
        self._timing_cache: bytes | None = None

    def prepare(self, subject: GpuSubject, pixels: NDArray[np.uint8]) -> Prepared:
        """See `fuseline.benchmarks.gpu.contender.Opened.prepare`. The engine's kernels are chosen for this batch."""
        started = time.monotonic()
        rows = len(pixels)
        artifact = subject.package.find("onnx", "fp16")
        assert artifact is not None
        graph = subject.package.read(artifact)
        build = build_engine(
            graph,
            precision="fp16",
            capability=self._engine_for,
            max_batch=rows,
            timing_cache=self._timing_cache,
        )
        self._timing_cache = build.timing_cache
        trt = import_library(build.library)
        backend = ReplayedBackend(
            engine_from_plan(trt, build.plan),
            trt,
            self._cuda,
            row_shape=subject.package.manifest.input.row_shape,
            classes=subject.package.manifest.classes,
            precision="fp16",
            device=f"{self._gpu.name} ({NAMES[build.library]})",
            buckets=(rows,),
        )
        # The pixels that the resident calls find on the GPU.
        backend.infer(pixels)
        details: dict[str, Any] = {
            "library": NAMES[build.library],
            "library_version": build.bound_to.library_version,
            "profile": build.bound_to.profile,
            "precision_counts": build.precision_counts,
            "plan_bytes": len(build.plan),
            "build_s": round(build.seconds, 2),
            "ready_s": round(time.monotonic() - started, 2),
        }
        return Prepared(
            resident=lambda: backend.replay(rows),
            resident_logits=lambda: backend.latest_logits(rows, subject.package.manifest.classes),
            host=lambda: backend.infer(pixels),
            details=details,
            release=backend.close,
        )


class ReplayedBackend(TensorRTBackend):
    """The backend that serves, whose network can be run without the copies around it."""

    def replay(self, rows: int) -> None:
        """Run the network on the pixels of the last `infer`, and wait."""
        self._cuda.launch(self._lanes[0].graphs[rows], self._computing)
        self._cuda.synchronise(self._computing)

    def latest_logits(self, rows: int, classes: int) -> NDArray[np.float32]:
        """What the last run left on the GPU."""
        nbytes = rows * classes * np.dtype(np.float32).itemsize
        with self._cuda.pinned_memory(nbytes) as host:
            self._cuda.copy_to_host(host.ctypes.data, self._lanes[0].output, nbytes, self._computing)
            self._cuda.synchronise(self._computing)
            return host.view(np.float32).reshape(rows, classes).copy()
