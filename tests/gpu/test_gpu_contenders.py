"""What the GPU benchmark compares answers as eager PyTorch does. Each test takes some 15 s, so they come last."""

import numpy as np
import pytest

from fuseline.benchmarks.gpu.contender import CONTENDERS, modes_on
from fuseline.benchmarks.gpu.start import start_contender
from fuseline.benchmarks.gpu.subject import open_gpu_subject
from fuseline.benchmarks.harness.worker_process import WorkerProcess, WorkFailedError
from fuseline.serve.backends.gpu.cuda import Cuda
from tests.gpu.conftest import ENGINE_FOR, TOLERANCE

pytestmark = pytest.mark.gpu

TIMEOUT_S = 240.0


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", CONTENDERS)
def test_the_benchmarks_contenders_answer_rightly_in_every_mode(name: str, cuda: Cuda) -> None:
    precision = "fp32" if CONTENDERS[name].precision == "fp32" else "fp16"
    opened = open_gpu_subject("resnet18", input_side=64, rows=2)
    contender = (name, "cuda", "reduce-overhead", ENGINE_FOR)
    with opened as (subject, pixels, expected), WorkerProcess(start_contender, *contender) as worker:
        try:
            worker.ready(TIMEOUT_S)
            # Twice: the second batch must find nothing of the first.
            for rows in (1, 2):
                answers = worker.ask("prepare", subject, pixels[:rows], 0.05, timeout_s=TIMEOUT_S)
                assert answers.logits.keys() == set(modes_on("cuda"))
                for mode, logits in answers.logits.items():
                    assert np.abs(logits - expected[:rows]).max() <= TOLERANCE[precision] * np.ptp(expected), mode
                    assert worker.ask("measure", mode, 0.05, timeout_s=TIMEOUT_S)
            worker.ask("release", timeout_s=TIMEOUT_S)
        except WorkFailedError as failure:
            if failure.kind != "not here":
                raise
            pytest.skip(f"{name} does not run here: {failure}")
