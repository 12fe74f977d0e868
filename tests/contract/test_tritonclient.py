"""The unmodified `tritonclient` package, in its own environment, against `fuseline serve`."""

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor

from fuseline.protos import open_inference_pb2
from fuseline.serve.client import Client
from tests.fakes.colours import noise, write_colours_package
from tests.serve.processes import FAST, ROOT, free_port, get, server_process

PYTHON = ROOT / ".venv-tritonclient/bin/python"
CALLS = Path(__file__).with_name("tritonclient_calls.py")
PIXELS = noise(5)


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What tritonclient saw, with the server's own logits and metrics beside it."""
    if not PYTHON.is_file():
        pytest.fail(f"there is no {PYTHON}; run `make setup`")
    folder = tmp_path_factory.mktemp("tritonclient")
    np.save(folder / "pixels.npy", PIXELS)
    package = write_colours_package(folder / "colours")
    with server_process(package, *FAST, "--http-port", free_port()) as server:
        done = subprocess.run(
            [PYTHON, CALLS, server.address, folder / "pixels.npy"],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert server.http_address is not None
        metrics = get(server.http_address, "/metrics")[1]
        with Client(server.address) as client:
            results = client.classify(list(PIXELS), return_logits=True).results
    logits = [result.logits.tolist() for result in results if result.logits is not None]
    return json.loads(done.stdout) | {"classified": logits, "metrics": metrics}


def test_it_infers_what_classify_answers_bit_for_bit(seen: dict[str, Any]) -> None:
    assert len(seen["classified"]) == len(PIXELS)
    for way in ("infer", "gzip", "asked_for"):
        assert seen["logits"][way] == seen["classified"], way
    # Of single pictures, how many share a batch is chance, and the runtime rounds differently by the batch's size.
    for way in ("async_infer", "stream", "asyncio"):
        np.testing.assert_allclose(seen["logits"][way], seen["classified"], rtol=1e-5, atol=1e-6)


def test_it_finds_server_and_model_ready_and_described(seen: dict[str, Any]) -> None:
    assert (seen["live"], seen["ready"], seen["model_ready"], seen["unknown_model_ready"]) == (True, True, True, False)
    assert seen["server"]["name"] == "fuseline"
    assert seen["metadata"] == {
        "name": "colours",
        "versions": ["1"],
        "platform": "onnxruntime_onnx",
        "inputs": [{"name": "image", "datatype": "UINT8", "shape": ["-1", "8", "8", "3"]}],
        "outputs": [{"name": "logits", "datatype": "FP32", "shape": ["-1", "4"]}],
    }
    assert seen["config"] == {
        "name": "colours",
        "platform": "onnxruntime_onnx",
        "backend": "onnxruntime",
        "version_policy": {"latest": {"num_versions": 1}},
        "max_batch_size": 128,
        "input": [{"name": "image", "data_type": "TYPE_UINT8", "format": "FORMAT_NHWC", "dims": ["8", "8", "3"]}],
        "output": [
            {"name": "logits", "data_type": "TYPE_FP32", "dims": ["4"], "label_filename": "manifest.json"},
        ],
        "instance_group": [{"name": "colours_0", "count": 1, "kind": "KIND_CPU"}],
        "dynamic_batching": {
            "preferred_batch_size": [1, 2, 3, 4, 6, 8, 12, 16, 24, 32],
            "default_queue_policy": {
                "default_timeout_microseconds": "2000000",
                "allow_timeout_override": True,
                "max_queue_size": 1024,
            },
            "priority_levels": "2",
            "default_priority_level": "1",
        },
        "model_transaction_policy": {},
    }
    assert seen["index"] == [{"name": "colours", "version": "1", "state": "READY"}]


def test_its_mistakes_raise_its_own_exception_with_status_and_reason(seen: dict[str, Any]) -> None:
    expected = {
        "datatype": ("INVALID_ARGUMENT", "'FP32', expected 'UINT8'"),
        "shape": ("INVALID_ARGUMENT", r"shape \[5, 3, 8, 8\], expected \[images, 8, 8, 3\]"),
        "input": ("INVALID_ARGUMENT", "'pixels'.*takes 'image'"),
        "output": ("INVALID_ARGUMENT", "'labels'.*'logits' only"),
        "too many": ("INVALID_ARGUMENT", "1000 images, at most 128"),
        "model": ("NOT_FOUND", "'cats'.*served: colours"),
        "version": ("NOT_FOUND", "version '2'.*served: '1'"),
        "load": ("FAILED_PRECONDITION", "explicit model load / unload is not allowed"),
    }
    assert set(seen["errors"]) == set(expected)
    for mistake, (status, reason) in expected.items():
        came_status, message = seen["errors"][mistake]
        assert came_status == f"StatusCode.{status}", mistake
        assert re.search(reason, message), message


def test_its_statistics_are_what_it_asked_for(seen: dict[str, Any]) -> None:
    (counted,) = seen["statistics"]
    # And each picture once in the stream.
    requests = 3 + 2 * len(PIXELS)
    # Those that name no served model count for none.
    refused = len(seen["errors"]) - len({"model", "version", "load"})
    assert int(counted["inference_count"]) == 6 * len(PIXELS)
    assert int(counted["execution_count"]) == sum(int(b["compute_infer"]["count"]) for b in counted["batch_stats"])
    of_requests = counted["inference_stats"]
    assert int(of_requests["success"]["count"]) == requests + len(PIXELS)
    assert int(of_requests["fail"]["count"]) == refused
    assert int(of_requests["success"]["ns"]) >= int(of_requests["compute_infer"]["ns"]) > 0
    labels = 'method="ModelInfer",model="colours",version="1"'
    assert f'fuseline_requests_total{{code="OK",{labels}}} {requests}.0' in seen["metrics"]
    assert f'fuseline_requests_total{{code="INVALID_ARGUMENT",{labels}}} {refused}.0' in seen["metrics"]


def test_each_message_of_ours_has_the_numbers_and_types_that_it_expects(seen: dict[str, Any]) -> None:
    checked = 0

    def check(message: Descriptor) -> None:
        nonlocal checked
        theirs = seen["messages"][message.full_name]
        for field in message.fields:
            assert _described(field) == theirs[field.name], field.full_name
            checked += 1
        for nested in message.nested_types:
            check(nested)

    for message in open_inference_pb2.DESCRIPTOR.message_types_by_name.values():
        check(message)
    assert checked > 100


def _described(field: FieldDescriptor) -> list[Any]:
    """As `tritonclient_calls.describe_field`, which can't be imported here, describes it."""
    of_message = field.message_type.full_name if field.message_type is not None else None
    values = {value.name: value.number for value in field.enum_type.values} if field.enum_type is not None else None
    return [field.number, field.type, field.is_repeated, of_message, values]
