"""Triton's extensions over gRPC, by the unmodified tritonclient; `tests/contract` has the protocol without them."""

from typing import Any

import numpy as np
import pytest

from tests.serve.clients.conftest import Offer, misread, refusals_amiss, wrong

CLASSES = 4


@pytest.fixture(scope="module")
def seen(offer: Offer) -> dict[str, Any]:
    """What the script saw."""
    return offer.seen_by(".venv-tritonclient", "triton_grpc_calls.py")


def test_priority_time_limits_sequences_and_parameters_of_ones_own_change_no_answer(
    offer: Offer, seen: dict[str, Any]
) -> None:
    assert len(seen["logits"]) == 10
    assert wrong(seen["logits"], offer.logits) == {}


def test_encoded_pictures_are_inferred(offer: Offer, seen: dict[str, Any]) -> None:
    assert len(seen["files"]) == 3
    assert wrong(seen["files"], offer.file_logits) == {}


def test_classification_gives_as_many_classes_as_asked_for_and_there_are(offer: Offer, seen: dict[str, Any]) -> None:
    for count in (1, 2, 4, 99):
        assert misread(seen["classes"]["unary"][str(count)], offer.logits, min(count, CLASSES)) is None, count
    assert misread(seen["classes"]["of files"], offer.file_logits, 2) is None
    assert misread(seen["classes"]["asyncio"], offer.logits, 2) is None
    streamed = [classes for _, _, classes in seen["classes"]["stream"]]
    assert misread(streamed, offer.logits, 2) is None


@pytest.mark.parametrize("way", ["plain", "final asked for", "asyncio"])
def test_each_answer_of_a_stream_says_that_it_is_the_final_one_of_its_request(
    offer: Offer, seen: dict[str, Any], way: str
) -> None:
    found = seen["stream"][way]
    assert isinstance(found, list), found
    assert [(number, final) for number, final, _ in found] == [(str(n), True) for n in range(len(offer.logits))]
    np.testing.assert_allclose([logits for _, _, logits in found], offer.logits, rtol=1e-5, atol=1e-6)


def test_a_mistake_in_a_stream_is_answered_in_its_place_and_the_stream_goes_on(
    offer: Offer, seen: dict[str, Any]
) -> None:
    (message,) = seen["stream, one wrong"]["errors"]
    assert "cats" in message
    assert wrong({"others": seen["stream, one wrong"]["logits"]}, offer.logits[[0, 0]]) == {}


def test_a_call_given_up_leaves_the_next_one_its_answer(offer: Offer, seen: dict[str, Any]) -> None:
    assert seen["cancelled"]["first"] in ("answered", "StatusCode.CANCELLED")
    assert wrong({"next": seen["cancelled"]["next"]}, offer.logits) == {}
    if seen["cancelled"]["first"] == "answered":
        assert wrong({"given up": seen["cancelled"]["result"]}, offer.logits) == {}


def test_settings_of_trace_and_log_can_be_read_and_what_cannot_be_set_says_so(seen: dict[str, Any]) -> None:
    settings = seen["settings"]
    assert settings["trace"]["settings"]["trace_level"]["value"] == ["OFF"]
    assert set(settings["trace of the model"]["settings"]) == set(settings["trace"]["settings"])
    levels = [settings[name]["settings"]["log_verbose_level"]["uint32_param"] for name in ("log", "log set")]
    assert levels == [0, 1]
    assert settings["log set back"] == settings["log"]
    for name in ("log file", "trace file"):
        assert settings[name]["status"] == "StatusCode.INVALID_ARGUMENT", settings[name]
        assert name.replace(" ", "_") in settings[name]["message"]


def test_mistakes_are_refused_with_their_reason(seen: dict[str, Any]) -> None:
    invalid = r"StatusCode\.INVALID_ARGUMENT"
    expected = {
        "classes as text": (invalid, "classification"),
        "no classes": (invalid, "classification"),
        "fewer than no classes": (invalid, "classification"),
        "no picture": (invalid, "image"),
        "empty picture": (invalid, "image"),
    }
    assert refusals_amiss(seen["refused"], expected) == {}
