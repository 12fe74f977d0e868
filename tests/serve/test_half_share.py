"""The share of layers in BF16: where a user of a served model sees it."""

from pathlib import Path

import pytest

from fuseline.protos.classify_pb2 import GetModelRequest
from fuseline.serve.backends.onnxruntime import OnnxRuntimeBackend
from fuseline.serve.client import Client
from fuseline.serve.metrics.metrics import Metrics
from fuseline.serve.model_description import description_from_response
from tests.bf16 import needs_bf16
from tests.serve.conftest import StartServer
from tests.serve.processes import free_port, get, server_process


@pytest.mark.parametrize("share", [None, 0.975])
async def test_the_description_and_the_metrics_have_it(
    start_server: StartServer, monkeypatch: pytest.MonkeyPatch, share: float | None
) -> None:
    monkeypatch.setattr(OnnxRuntimeBackend, "half_share", share)
    served = await start_server()
    response = await served.stub.GetModel(GetModelRequest())
    assert response.HasField("half_share") == (share is not None)
    assert description_from_response(response).half_share == share
    metrics = Metrics()
    metrics.watch(next(iter(served.server.repository)))
    assert metrics.registry.get_sample_value("fuseline_model_half_share", {"model": "colours"}) == share


@needs_bf16
@pytest.mark.parametrize("workers", [1, 2])
def test_a_server_in_bf16_says_so_in_its_line_to_clients_and_in_its_metrics(package: Path, workers: int) -> None:
    flags = ("--precision", "bf16", "--port", 0, "--http-port", free_port(), "--workers", workers)
    with server_process(package, *flags) as server:
        assert "openvino on CPU, bf16 in 100% of the layers, batches of" in server.announcement
        with Client(server.address) as client:
            model = client.model()
        assert (model.precision, model.half_share) == ("bf16", 1.0)
        text = get(str(server.http_address), "/metrics")[1]
        assert 'fuseline_model_half_share{model="colours"} 1.0' in text
