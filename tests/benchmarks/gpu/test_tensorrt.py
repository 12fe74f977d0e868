"""The TensorRT contender's own step, against a fake device that checks every address."""

import numpy as np
import pytest

from fuseline.benchmarks.gpu.tensorrt import ReplayedBackend
from fuseline.serve.backends.gpu.cuda import Cuda
from fuseline.serve.errors import BackendUnavailableError
from tests.fakes.gpu import FakeCudart, FakeEngine, FakeTensorRT, expected_logits


def test_a_replay_runs_the_network_alone_on_the_pixels_of_the_last_call() -> None:
    cudart = FakeCudart()
    engine = FakeEngine(cudart)
    backend = ReplayedBackend(
        engine,
        FakeTensorRT(),
        Cuda(cudart),
        row_shape=(4, 4, 3),
        classes=engine.classes,
        precision="fp16",
        device="Fake RTX 4090",
        buckets=(2,),
    )
    pixels = np.random.default_rng(0).integers(0, 256, (2, 4, 4, 3), np.uint8)
    backend.infer(pixels)
    cudart.calls.clear()
    backend.replay(2)
    assert cudart.calls == ["cudaGraphLaunch", "cudaStreamSynchronize"]
    np.testing.assert_allclose(backend.latest_logits(2, 3), expected_logits(pixels, 3), rtol=1e-6)
    backend.close()
    assert not cudart.live


def test_without_a_gpu_the_contender_is_not_here(monkeypatch: pytest.MonkeyPatch) -> None:
    from fuseline.benchmarks.gpu import tensorrt

    def refuse() -> Cuda:
        raise BackendUnavailableError("no NVIDIA driver is installed")

    monkeypatch.setattr(tensorrt, "open_cuda", refuse)
    with pytest.raises(BackendUnavailableError, match="no NVIDIA driver"):
        tensorrt.TensorRTContender()
