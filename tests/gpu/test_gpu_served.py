"""A package served on the GPU by the real command, over gRPC."""

from pathlib import Path

import numpy as np
import pytest

from fuseline.serve.client import Client
from tests.gpu.conftest import BUCKETS, TOLERANCE, OpenBackend, Subject
from tests.serve.processes import server_process

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(600)]


@pytest.mark.parametrize("name", ["tensorrt", "onnxruntime"])
def test_a_package_served_on_the_gpu_classifies_as_pytorch_does(
    name: str, subject: Subject, open_on_gpu: OpenBackend, engine_cache: Path
) -> None:
    # Skips where the runtime is not here; a server would go on to the next.
    backend = open_on_gpu(name, subject.package)
    device = backend.device
    backend.close()
    flags = ("--backend", name, "--precision", "fp16", "--max-batch", BUCKETS[-1], "--port", "0", "--http-port", "0")
    with server_process(subject.package.folder, *flags, "--engine-cache", engine_cache) as server:
        assert device in server.announcement
        with Client(server.address) as client:
            results = client.classify(list(subject.pixels), return_logits=True).results
        server.process.terminate()
        assert server.end()[0] == 0
    logits = np.array([result.logits for result in results])
    assert np.abs(logits - subject.expected).max() <= TOLERANCE["fp16"] * np.ptp(subject.expected)
    best = [result.predictions[0].index for result in results]
    np.testing.assert_array_equal(best, subject.expected.argmax(axis=1))
