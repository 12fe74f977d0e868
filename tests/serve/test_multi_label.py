"""A multi-label model: each label by its own sigmoid, from the logits to the terminal."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fuseline.protos.classify_pb2 import ClassifyRequest, GetModelRequest, Image
from fuseline.protos.open_inference_pb2 import ModelConfigRequest, ModelInferRequest
from fuseline.protos.open_inference_pb2_grpc import GRPCInferenceServiceStub
from fuseline.serve.client import Client
from fuseline.serve.model_package import load_package
from fuseline.serve.services.top_k import RankedBatch, top_k_from_logits
from tests.commands import Run
from tests.fakes.colours import LABELS, encoded, expected_logits, noise, plain, write_colours_package
from tests.serve.conftest import StartServer
from tests.serve.processes import server_process
from tests.serve.services.classify_requests import raw_request


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The colours model as one whose labels may all hold, or none."""
    return write_colours_package(tmp_path_factory.mktemp("multi") / "colours", task="multi-label")


def sigmoid(logits: np.typing.NDArray[Any]) -> np.typing.NDArray[np.float64]:
    return 1 / (1 + np.exp(-np.asarray(logits, np.float64)))


def test_probabilities_are_sigmoids_of_the_largest_logits_and_never_overflow() -> None:
    logits = np.random.default_rng(0).normal(0, 30, (50, 9)).astype(np.float32)
    logits[0, :4] = (1e4, -1e4, 0, 88.8)
    for k in (1, 4, 9):
        indices, probabilities = top_k_from_logits(logits, k, "multi-label")
        assert probabilities.dtype == np.float32
        np.testing.assert_array_equal(indices, np.argsort(-logits, axis=1, kind="stable")[:, :k])
        with np.errstate(over="ignore"):
            expected = sigmoid(np.take_along_axis(logits, indices, axis=1))
        np.testing.assert_allclose(probabilities, expected, rtol=1e-5, atol=1e-38)
    assert RankedBatch(np.zeros((1, 3), np.float32), "multi-label").top(3) == [[(0, 0.5), (1, 0.5), (2, 0.5)]]


def test_a_package_of_before_is_single_label(tmp_path: Path) -> None:
    folder = write_colours_package(tmp_path / "old")
    manifest = json.loads((folder / "manifest.json").read_text())
    for key in ("task", "assumptions"):
        del manifest[key]
    del manifest["input"]["preprocessing"]["crop_offset"]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    loaded = load_package(folder).manifest
    assert (loaded.task, loaded.assumptions, loaded.described_classes) == ("single-label", (), "4 classes")


async def test_both_protocols_and_streams(start_server: StartServer) -> None:
    served = await start_server(max_batch=4)
    pixels = noise(3)
    logits = expected_logits(pixels)
    request = raw_request(pixels, top_k=4, return_logits=True)
    answer = await served.stub.Classify(request)
    (streamed,) = [response async for response in served.stub.ClassifyStream(iter([request]))]
    for response in (answer, streamed):
        for result, row in zip(response.results, logits, strict=True):
            order = np.argsort(-row)
            assert [p.index for p in result.predictions] == order.tolist()
            np.testing.assert_allclose([p.probability for p in result.predictions], sigmoid(row[order]), rtol=1e-5)
            np.testing.assert_allclose(np.frombuffer(result.logits, "<f4"), row, atol=1e-5)
    assert sum(p.probability for p in answer.results[0].predictions) > 1.2, "they are not normalised"
    encoded_red = ClassifyRequest(images=[Image(encoded=encoded(plain("red", 20, 30)))])
    (best,) = (await served.stub.Classify(encoded_red)).results[0].predictions
    assert (best.label, best.probability) == ("red", pytest.approx(sigmoid(4.0), rel=1e-5))
    assert (await served.stub.GetModel(GetModelRequest())).task == "multi-label"

    stub = GRPCInferenceServiceStub(served.channel)  # type: ignore[no-untyped-call]
    tensor = ModelInferRequest.InferInputTensor(name="image", datatype="UINT8", shape=pixels.shape)
    inferred = await stub.ModelInfer(
        ModelInferRequest(model_name="colours", inputs=[tensor], raw_input_contents=[pixels.tobytes()])
    )
    raw = np.frombuffer(inferred.raw_output_contents[0], "<f4").reshape(3, 4)
    np.testing.assert_allclose(raw, logits, atol=1e-5)
    config = (await stub.ModelConfig(ModelConfigRequest(name="colours"))).config
    assert config.parameters["task"].string_value == "multi-label"


def test_the_client_and_the_command_tell_it(live_address: str, tmp_path: Path, run_fuseline: Run) -> None:
    with Client(live_address) as client:
        assert client.model().task == "multi-label"
        predictions = client.classify(plain("red"), top_k=4).results[0].predictions
    logits = expected_logits(plain("red")[np.newaxis])[0]
    assert {p.label: p.probability for p in predictions} == pytest.approx(
        dict(zip(LABELS, sigmoid(logits), strict=True)), rel=1e-5
    )
    (tmp_path / "red.png").write_bytes(encoded(plain("red")))

    def classify(*arguments: str) -> str:
        code, stdout, _ = run_fuseline("classify", tmp_path / "red.png", "--address", live_address, *arguments)
        assert code == 0
        return stdout

    rows = [line.split() for line in classify().splitlines()[1:]]
    assert [(row[0], row[-1]) for row in rows] == [("red", "yes"), ("green", "no"), ("blue", "no"), ("dark", "no")]
    found = json.loads(classify("--json"))
    assert found["task"] == "multi-label"
    assert {p["label"]: p["probability"] for p in found["predictions"]} == pytest.approx(
        dict(zip(LABELS, sigmoid(logits), strict=True)), rel=1e-5
    )


def test_every_label_that_holds_is_shown_unless_fewer_are_asked_for(tmp_path: Path, run_fuseline: Run) -> None:
    biases = np.array([2, 2, 2, 2, 2, 2, 2, -2, -2], np.float32)
    told: dict[str, Any] = {"labels": tuple("abcdefghi"), "weights": np.zeros((3, 9), np.float32), "biases": biases}
    package = write_colours_package(tmp_path / "many", task="multi-label", **told)
    (tmp_path / "red.png").write_bytes(encoded(plain("red")))
    with server_process(package, "--port", 0, "--http-port", 0, "--backend", "onnxruntime") as server:
        for arguments, shown in (((), 7), (("--top-k", "3"), 3), (("--top-k", "9"), 9)):
            command = ("classify", tmp_path / "red.png", "--address", server.address, "--json")
            code, stdout, _ = run_fuseline(*command, *arguments)
            assert code == 0
            assert len(json.loads(stdout)["predictions"]) == shown


def test_workers_answer_the_same(package: Path) -> None:
    arguments = ("--port", 0, "--http-port", 0, "--backend", "onnxruntime", "--workers", 2)
    with server_process(package, *arguments) as server, Client(server.address) as client:
        assert "colours (version 1): multi-label, onnxruntime" in server.announcement
        pixels = noise(2)
        for row, result in zip(expected_logits(pixels), client.classify(list(pixels), top_k=4).results, strict=True):
            np.testing.assert_allclose(
                [p.probability for p in result.predictions], np.sort(sigmoid(row))[::-1], rtol=1e-5
            )
