"""Contenders of the GPU benchmark that go wrong on purpose, each in the process that it is given."""

import os
import signal
import threading
from typing import Any

from fuseline.benchmarks.gpu.contender import Answers
from fuseline.benchmarks.gpu.start import start_contender
from fuseline.benchmarks.harness.worker_process import Answerer
from fuseline.serve.errors import BackendUnavailableError

FAULTS = {
    "eager-tf32": "crash while it is got ready",
    "eager-fp16": "out of memory",
    "compiled": "wrong answer",
    "graphed": "crash while it is timed",
    "tensorrt": "not here",
}
"""Contender to its fault; the others are real."""


def start_faulty(name: str, device: str, compile_mode: str, engine_for: str | None) -> Answerer:
    """As `start_contender`, with ONNX Runtime in the place of those that answer before they fail."""
    fault = FAULTS.get(name)
    if fault is None:
        return start_contender(name, "cpu", compile_mode)
    if fault == "not here":
        raise BackendUnavailableError("it is not installed: pip install it")
    real = start_contender("onnxruntime", "cpu", compile_mode)

    def answer(question: str, details: tuple[Any, ...]) -> Any:
        if fault == "crash while it is got ready" or (question == "measure" and fault == "crash while it is timed"):
            os.kill(os.getpid(), signal.SIGKILL)
        if fault == "out of memory" and question == "prepare" and len(details[1]) > 1:
            raise RuntimeError("CUDA out of memory. Tried to allocate 20.00 MiB in /home/me/net.py")
        given = real(question, details)
        if fault == "wrong answer" and isinstance(given, Answers):
            return Answers({mode: logits + 1e6 for mode, logits in given.logits.items()}, given.details)
        return given

    return answer


def start_echo() -> Answerer:
    """Answers `echo` with its arguments; `hang` never; `fail` by an error."""

    def answer(question: str, details: tuple[Any, ...]) -> Any:
        if question == "hang":
            threading.Event().wait()
        if question == "fail":
            raise ValueError(*details)
        return details

    return answer


def start_refusing() -> Answerer:
    raise BackendUnavailableError("no GPU is here")
