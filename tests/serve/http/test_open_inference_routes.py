"""The Open Inference Protocol over HTTP but for inference: the answers that Triton's clients read."""

import asyncio
from typing import Any

import pytest

from fuseline.protos.open_inference_pb2 import (
    CudaSharedMemoryStatusResponse,
    SystemSharedMemoryStatusResponse,
)
from fuseline.serve.errors import RequestError
from fuseline.serve.services.open_inference import OpenInferenceService
from tests.serve.conftest import StartServer
from tests.serve.http.calls import call, get, post_json


async def test_metadata_config_statistics_and_index_have_tritons_names_and_numbers(start_http: StartServer) -> None:
    served = await start_http(max_images_per_request=8)
    server = (await get(served, "/v2")).json
    assert server["name"] == "fuseline"
    assert {"model_configuration", "statistics", "binary_tensor_data"} <= set(server["extensions"])
    for version in ("", "/versions/1"):
        metadata = (await get(served, f"/v2/models/colours{version}")).json
        assert metadata == {
            "name": "colours",
            "versions": ["1"],
            "platform": "onnxruntime_onnx",
            "inputs": [{"name": "image", "datatype": "UINT8", "shape": [-1, 8, 8, 3]}],
            "outputs": [{"name": "logits", "datatype": "FP32", "shape": [-1, 4]}],
        }
        config = (await get(served, f"/v2/models/colours{version}/config")).json
        assert (config["name"], config["max_batch_size"]) == ("colours", 8)
        (tensor,) = config["input"]
        assert tensor == {"name": "image", "data_type": "TYPE_UINT8", "format": "FORMAT_NHWC", "dims": [8, 8, 3]}
        assert config["output"][0]["data_type"] == "TYPE_FP32"
        assert config["dynamic_batching"]["max_queue_delay_microseconds"] == 0
        (statistics,) = (await get(served, f"/v2/models/colours{version}/stats")).json["model_stats"]
        assert statistics["inference_stats"]["success"] == {"count": 0, "ns": 0}
    assert (await get(served, "/v2/models/stats")).json == {"model_stats": [statistics]}
    for body in (b"", b"{}", b'{"ready":true}'):
        index = await call(served, "POST", "/v2/repository/index", body)
        assert index.json == [{"name": "colours", "version": "1", "state": "READY", "reason": ""}]
    assert "'ready' is an integer" in (await post_json(served, "/v2/repository/index", {"ready": 1})).error


async def test_health_is_told_by_the_status_and_in_the_body(start_http: StartServer) -> None:
    served = await start_http()
    model = {"name": "colours"}
    ready = {
        "/v2/health/live": {"live": True},
        "/v2/health/ready": {"ready": True},
        "/v2/models/colours/ready": model | {"ready": True},
        "/v2/models/colours/versions/1/ready": model | {"ready": True},
    }
    for path, told in ready.items():
        answer = await get(served, path)
        assert (answer.status, answer.json) == (200, told), path
    for path in ("/v2/models/cats/ready", "/v2/models/colours/versions/2/ready"):
        assert (await get(served, path)).status == 404
    served.server.ready = False
    await served.server.set_health(serving=False)
    assert [(await get(served, path)).status for path in ready] == [200, 503, 503, 503]
    assert (await get(served, "/v2/health/ready")).json == {"ready": False}


async def test_what_names_no_model_that_is_loaded_is_answered_503_until_all_are(start_http: StartServer) -> None:
    served = await start_http()
    assert (await get(served, "/v2/models/cats")).status == 404
    served.server.ready = False
    answer = await get(served, "/v2/models/cats")
    assert (answer.status, answer.headers["fuseline-error"]) == (503, "BackendLostError")
    assert "'cats'" in answer.error
    assert "not ready" in answer.error


async def test_a_path_that_is_not_served_is_404_and_another_method_405(start_http: StartServer) -> None:
    served = await start_http()
    for path in ("/v3", "/v2/", "/v2/models", "/v2/models//infer", "/v2/models/colours/infer/1", "/metrics/x"):
        answer = await call(served, "POST", path)
        assert answer.status == 404, path
        assert "/openapi.json" in answer.error
    for method, path, allowed in (
        ("GET", "/v2/models/colours/infer", "POST"),
        ("POST", "/v2", "GET, HEAD"),
        ("DELETE", "/v2/logging", "GET, POST, HEAD"),
        ("PUT", "/v1/classify", "POST"),
    ):
        answer = await call(served, method, path)
        assert (answer.status, answer.headers["allow"]) == (405, allowed)
        assert allowed in answer.error
    head = await call(served, "HEAD", "/v2/models/colours")
    assert (head.status, head.body) == (200, b"")


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """The calls of the services' methods for shared memory and settings, which answer as they would."""
    calls: list[tuple[Any, ...]] = []

    def answering(name: str, answer: Any) -> None:
        def method(_: Any, *arguments: Any) -> Any:
            calls.append((name, *arguments))
            return answer

        monkeypatch.setattr(OpenInferenceService, name, method, raising=False)

    def awaited(name: str) -> None:
        async def method(_: Any, *arguments: Any) -> None:
            await asyncio.sleep(0)
            if arguments[0] == "bad":
                raise RequestError("no")
            calls.append((name, *arguments))

        monkeypatch.setattr(OpenInferenceService, name, method, raising=False)

    system = SystemSharedMemoryStatusResponse()
    for name in ("b", "a"):
        region = SystemSharedMemoryStatusResponse.RegionStatus(name=name, key="/k", offset=2**40, byte_size=8)
        system.regions[name].CopyFrom(region)
    cuda = CudaSharedMemoryStatusResponse()
    cuda.regions["c"].CopyFrom(CudaSharedMemoryStatusResponse.RegionStatus(name="c", device_id=1, byte_size=8))
    answering("system_shared_memory_status", system)
    answering("cuda_shared_memory_status", cuda)
    for kind in ("system", "cuda"):
        for verb in ("register", "unregister"):
            awaited(f"{kind}_shared_memory_{verb}")
    answering("trace_settings", {"trace_level": ["OFF"], "trace_rate": ["1"]})
    answering("log_settings", {"log_info": True, "log_verbose_level": 0, "log_file": ""})
    return calls


async def test_regions_are_registered_told_of_and_unregistered(
    start_http: StartServer, asked: list[tuple[Any, ...]]
) -> None:
    served = await start_http()
    system, cuda = "/v2/systemsharedmemory", "/v2/cudasharedmemory"
    assert (await get(served, f"{system}/status")).json == [
        {"name": name, "key": "/k", "offset": 2**40, "byte_size": 8} for name in ("a", "b")
    ]
    assert (await get(served, f"{cuda}/region/c/status")).json == [{"name": "c", "device_id": 1, "byte_size": 8}]
    handle = {"raw_handle": {"b64": "AAEC"}, "device_id": 1, "byte_size": 8}
    for path, body in (
        (f"{system}/region/a/register", {"key": "/k", "offset": 4, "byte_size": 8}),
        (f"{system}/region/of%20mine%2F2/register", {"key": "/k", "byte_size": 8}),
        (f"{cuda}/region/c/register", handle),
        (f"{system}/region/a/unregister", {}),
        (f"{cuda}/unregister", {}),
    ):
        answer = await post_json(served, path, body)
        assert (answer.status, answer.body) == (200, b"")
    assert asked == [
        ("system_shared_memory_status", ""),
        ("cuda_shared_memory_status", "c"),
        ("system_shared_memory_register", "a", "/k", 4, 8),
        ("system_shared_memory_register", "of mine/2", "/k", 0, 8),
        ("cuda_shared_memory_register", "c", b"\0\1\2", 1, 8),
        ("system_shared_memory_unregister", "a"),
        ("cuda_shared_memory_unregister", ""),
    ]
    asked.clear()
    for path, body, reason in (
        (f"{system}/region/a/register", {}, "'key' is missing"),
        (f"{system}/region/a/register", {"key": 1, "byte_size": 8}, "'key' is an integer"),
        (f"{system}/region/a/register", {"key": "/k"}, "'byte_size' is missing"),
        (f"{system}/region/a/register", {"key": "/k", "offset": -1, "byte_size": 8}, "'offset' is -1"),
        (f"{system}/region/a/register", {"key": "/k", "byte_size": 2**64}, "integer of 64 bits"),
        (f"{system}/region/a/register", {"key": "/k", "byte_size": 8.0}, "'byte_size' is 8.0"),
        (f"{system}/region/bad/register", {"key": "/k", "byte_size": 8}, "no"),
        (f"{system}/region/bad/unregister", {}, "no"),
        (f"{cuda}/region/c/register", handle | {"raw_handle": "AAEC"}, "'raw_handle' is missing or no object"),
        (f"{cuda}/region/c/register", handle | {"raw_handle": {"b64": "A"}}, "no base64"),
        (f"{cuda}/region/c/register", handle | {"raw_handle": {"b64": "\u00e9AAA"}}, "no base64"),
        (f"{cuda}/region/c/register", handle | {"raw_handle": {}}, "'b64' is missing"),
    ):
        answer = await post_json(served, path, body)
        assert answer.status == 400
        assert reason in answer.error
    assert asked == []


async def test_trace_and_log_settings_are_read_and_changed(
    start_http: StartServer, asked: list[tuple[Any, ...]]
) -> None:
    served = await start_http()
    assert (await get(served, "/v2/trace/setting")).json == {"trace_level": ["OFF"], "trace_rate": "1"}
    changes = {"trace_level": ["TIMESTAMPS", "TENSORS"], "trace_rate": 2, "trace_file": None}
    assert (await post_json(served, "/v2/models/colours/trace/setting", changes)).status == 200
    changed = {"trace_level": ["TIMESTAMPS", "TENSORS"], "trace_rate": ["2"], "trace_file": []}
    assert asked == [("trace_settings", "", {}), ("trace_settings", "colours", changed)]
    asked.clear()
    logging = {"log_info": True, "log_verbose_level": 0, "log_file": ""}
    assert (await get(served, "/v2/logging")).json == logging
    assert (await post_json(served, "/v2/logging", logging)).json == logging
    assert asked == [("log_settings", {}), ("log_settings", logging)]
    for path, body, reason in (
        ("/v2/trace/setting", {"trace_rate": {}}, "'trace_rate' is {}; expected text"),
        ("/v2/trace/setting", {"trace_level": [None]}, "expected text"),
        ("/v2/logging", {"log_info": None}, "'log_info' is None"),
        ("/v2/logging", {"log_verbose_level": 1.0}, "'log_verbose_level' is 1.0; expected a boolean"),
    ):
        answer = await post_json(served, path, body)
        assert answer.status == 400
        assert reason in answer.error
