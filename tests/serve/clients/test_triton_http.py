"""KServe v2's REST with Triton's extensions, by the unmodified tritonclient's two HTTP clients."""

from typing import Any

import pytest

from tests.serve.clients.conftest import Offer, misread, refusals_amiss, wrong


@pytest.fixture(scope="module")
def seen(offer: Offer) -> dict[str, Any]:
    """What the script saw."""
    return offer.seen_by(".venv-tritonclient", "triton_http_calls.py")


def test_each_way_to_ask_for_several_pictures_gets_the_logits_of_the_backend(
    offer: Offer, seen: dict[str, Any]
) -> None:
    assert len(seen["logits"]) == 19
    assert wrong(seen["logits"], offer.logits) == {}


def test_requests_under_way_together_each_get_their_own_answer(offer: Offer, seen: dict[str, Any]) -> None:
    assert set(seen["rows"]) == {"async_infer", "asyncio"}
    assert wrong(seen["rows"], offer.logits) == {}


def test_encoded_pictures_are_inferred(offer: Offer, seen: dict[str, Any]) -> None:
    assert len(seen["files"]) == 3
    assert wrong(seen["files"], offer.file_logits) == {}


@pytest.mark.parametrize("way", ["binary", "JSON"])
def test_classification_comes_binary_and_as_json(offer: Offer, seen: dict[str, Any], way: str) -> None:
    assert misread(seen["classes"][way], offer.logits, 2) is None


def test_the_answer_names_request_model_and_tensor(seen: dict[str, Any]) -> None:
    answer = dict(seen["answer"])
    assert (answer["id"], answer["model_name"], answer["model_version"]) == ("mine", "colours", "1")
    (output,) = answer["outputs"]
    assert output == {"name": "logits", "datatype": "FP32", "shape": [1, 4], "parameters": {"binary_data_size": 16}}


def test_it_finds_server_and_model_ready_and_described(seen: dict[str, Any]) -> None:
    described = seen["described"]
    ready = [described[name] for name in ("live", "ready", "model ready", "unknown model ready")]
    assert ready == [True, True, True, False]
    assert described["server"]["name"] == "fuseline"
    extensions = {"classification", "binary_tensor_data", "parameters", "statistics", "system_shared_memory"}
    assert extensions <= set(described["server"]["extensions"])
    assert described["metadata"] == {
        "name": "colours",
        "versions": ["1"],
        "platform": "onnxruntime_onnx",
        "inputs": [{"name": "image", "datatype": "UINT8", "shape": [-1, 8, 8, 3]}],
        "outputs": [{"name": "logits", "datatype": "FP32", "shape": [-1, 4]}],
    }
    config = described["config"]
    assert (config["name"], config["max_batch_size"]) == ("colours", 128)
    (source,), (sink,) = config["input"], config["output"]
    assert (source["name"], source["data_type"], source["dims"]) == ("image", "TYPE_UINT8", [8, 8, 3])
    assert (sink["name"], sink["data_type"], sink["dims"]) == ("logits", "TYPE_FP32", [4])
    assert described["index"] == [{"name": "colours", "version": "1", "state": "READY", "reason": ""}]
    assert described["trace"]["trace_level"] == ["OFF"]
    assert (described["log"]["log_verbose_level"], described["log set"]["log_verbose_level"]) == (0, 1)
    assert described["log set back"] == described["log"]
    assert described["system shared memory"] == []


def test_its_statistics_count_what_it_asked_for(seen: dict[str, Any]) -> None:
    (counted,) = seen["statistics"]["model_stats"]
    assert seen["all statistics"]["model_stats"] == [counted]
    # Of five pictures each: every way, two of them a picture a request. Three ways of three files; one picture alone.
    batches, files = len(seen["logits"]) + len(seen["classes"]), len(seen["files"])
    rows = len(seen["rows"])
    assert counted["inference_count"] == 5 * (batches + rows) + 3 * files + 1
    assert counted["inference_stats"]["success"]["count"] == batches + 5 * rows + files + 1
    assert counted["execution_count"] == sum(batch["compute_infer"]["count"] for batch in counted["batch_stats"])


def test_mistakes_raise_its_own_exception_with_status_and_reason(seen: dict[str, Any]) -> None:
    expected = {
        "datatype": ("400", "'FP32'.*UINT8"),
        "shape": ("400", r"\[5, 3, 8, 8\]"),
        "input": ("400", "'pixels'"),
        "output": ("400", "'labels'"),
        "too many": ("400", "1000"),
        "model": ("404", "'cats'"),
        "version": ("404", "'2'"),
        "picture": ("400", "image"),
        "priority": ("400", "priority"),
        "region": ("404", "nowhere"),
        "metadata": ("404", "'cats'"),
        "statistics": ("40[04]", "'cats'"),
    }
    assert refusals_amiss(seen["refused"], expected) == {}
