"""ONNX Runtime as a contender of the GPU benchmark, with bound inputs and outputs."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fuseline.benchmarks.gpu.contender import Device, Prepared
from fuseline.benchmarks.gpu.subject import GpuSubject
from fuseline.serve.backends import why_not_installed
from fuseline.serve.backends.bound_session import BoundBatch
from fuseline.serve.backends.onnxruntime import open_session, why_no_cuda
from fuseline.serve.errors import BackendUnavailableError


class OnnxRuntimeContender:
    """The package's FP16 graph on the CUDA provider, or the FP32 graph on the CPU; see `contender.Opened`."""

    def __init__(self, device: Device) -> None:
        """Raises `BackendUnavailableError` if ONNX Runtime, or on a GPU its CUDA provider, is not here."""
        if (reason := why_not_installed("onnxruntime")) is not None:
            raise BackendUnavailableError(reason)
        import onnxruntime as ort

        self._on_gpu = device == "cuda"
        if self._on_gpu:
            if (reason := why_no_cuda()) is not None:
                raise BackendUnavailableError(f"ONNX Runtime {ort.__version__}: {reason}")
            ort.preload_dlls()
        self._device = device
        self._ort: Any = ort

    def prepare(self, subject: GpuSubject, pixels: NDArray[np.uint8]) -> Prepared:
        """See `fuseline.benchmarks.gpu.contender.Opened.prepare`."""
        ort = self._ort
        # A session for each batch: the arena of a larger one would stay.
        session = self._session(subject)
        batch = BoundBatch(
            session,
            graph_id=1,
            rows=len(pixels),
            row_shape=pixels.shape[1:],
            classes=subject.package.manifest.classes,
            device=self._device,
        )
        batch.put(pixels)

        def host() -> NDArray[np.float32]:
            batch.put(pixels)
            batch.run()
            return batch.logits()

        def release() -> None:
            nonlocal session, batch
            del batch, session

        batch.run()
        return Prepared(
            resident=batch.run,
            resident_logits=batch.logits,
            host=host if self._on_gpu else None,
            details={"onnxruntime": ort.__version__, "providers": session.get_providers()},
            release=release,
        )

    def _session(self, subject: GpuSubject) -> Any:
        artifact = subject.package.find("onnx", "fp16" if self._on_gpu else "fp32")
        assert artifact is not None
        session = open_session(subject.package.checked_path(artifact), cuda=self._on_gpu)
        if self._on_gpu and session.get_providers()[0] != "CUDAExecutionProvider":
            raise BackendUnavailableError(
                f"ONNX Runtime {self._ort.__version__} has CUDA but can't load CUDA and cuDNN for it: "
                "pip install 'onnxruntime-gpu[cuda,cudnn]'"
            )
        return session
