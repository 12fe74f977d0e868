"""The clients of KServe's SDK, unmodified, over REST and gRPC."""

import sys
from typing import Any

import pytest

from tests.serve.clients.conftest import Offer, refusals_amiss, wrong

pytestmark = pytest.mark.skipif(sys.version_info >= (3, 14), reason="KServe's package is for Python up to 3.13")


@pytest.fixture(scope="module")
def seen(offer: Offer) -> dict[str, Any]:
    """What the script saw."""
    return offer.seen_by(".venv-kserve", "kserve_calls.py")


def test_it_infers_by_json_binary_tensors_raw_contents_and_lists(offer: Offer, seen: dict[str, Any]) -> None:
    assert len(seen["logits"]) == 6
    assert wrong(seen["logits"], offer.logits) == {}


def test_it_infers_encoded_pictures(offer: Offer, seen: dict[str, Any]) -> None:
    assert set(seen["files"]) == {"REST", "gRPC"}
    assert wrong(seen["files"], offer.file_logits) == {}


@pytest.mark.parametrize("protocol", ["rest", "grpc"])
def test_it_finds_server_and_model_live_and_ready(seen: dict[str, Any], protocol: str) -> None:
    expected = {"live": True, "ready": True, "model ready": True, "unknown model ready": False}
    assert seen[protocol] == expected


def test_it_is_told_what_it_did_wrong(seen: dict[str, Any]) -> None:
    expected = {"REST": ("400", "'pixels'.*400 Bad Request"), "gRPC": (r"StatusCode\.INVALID_ARGUMENT", "'pixels'")}
    assert refusals_amiss(seen["refused"], expected) == {}
