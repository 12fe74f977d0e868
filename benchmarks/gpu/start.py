"""Opening a contender of `fuseline bench gpu` in the process that is its own, and answering what is asked of it."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fuseline.benchmarks.gpu.contender import CONTENDERS, Answers, Device, Mode, Opened, Prepared
from fuseline.benchmarks.harness.timing import BURN_IN_S, timed_calls
from fuseline.benchmarks.harness.worker_process import Answerer
from fuseline.serve.errors import BackendUnavailableError


def start_contender(name: str, device: Device, compile_mode: str, engine_for: str | None = None) -> Answerer:
    """Open contender `name`; answer `prepare`, `measure`, `release` and `peak`.

    Raises:
        BackendUnavailableError: it can't run here.
    """
    opened = _open(name, device, compile_mode, engine_for)
    current: Prepared | None = None

    def release() -> None:
        nonlocal current
        if current is not None:
            current.release()
        current = None

    def answer(question: str, details: tuple[Any, ...]) -> Any:
        nonlocal current
        if question == "peak":
            from fuseline.benchmarks.gpu.peaks import measure_peak

            return measure_peak(device, *details)
        if question == "release":
            return release()
        if question == "prepare":
            release()
            subject, pixels, burn_in_s = details
            current = opened.prepare(subject, pixels)
            return _answers(current, min(burn_in_s, BURN_IN_S))
        assert current is not None
        mode, seconds = details
        return timed_calls(_call(current, mode), seconds)

    return answer


def _open(name: str, device: Device, compile_mode: str, engine_for: str | None) -> Opened:
    if device == "cpu" and not CONTENDERS[name].on_cpu:
        raise BackendUnavailableError("it needs a GPU")
    if name == "onnxruntime":
        from fuseline.benchmarks.gpu.onnxruntime import OnnxRuntimeContender

        return OnnxRuntimeContender(device)
    if name == "tensorrt":
        from fuseline.benchmarks.gpu.tensorrt import TensorRTContender

        return TensorRTContender(engine_for)
    from fuseline.benchmarks.gpu.pytorch import PyTorchContender

    return PyTorchContender(name, device, compile_mode)


def _call(prepared: Prepared, mode: Mode) -> Callable[[], Any]:
    if mode == "resident":
        return prepared.resident
    assert prepared.host is not None
    return prepared.host


def _answers(prepared: Prepared, burn_in_s: float) -> Answers:
    """Burn in, then take the answers: what is checked is what the warmed call gives."""
    timed_calls(prepared.resident, burn_in_s)
    logits: dict[Mode, NDArray[np.float32]] = {"resident": prepared.resident_logits()}
    if prepared.host is not None:
        timed_calls(prepared.host, burn_in_s)
        logits["host"] = prepared.host()
    return Answers(logits, prepared.details)
