"""System shared memory both ways, by the unmodified tritonclient and its utilities, over gRPC and over HTTP."""

from typing import Any

import pytest

from tests.serve.clients.conftest import Offer, refusals_amiss, wrong

PROTOCOLS = ("gRPC", "HTTP")
_STATUSES = {
    "gRPC": {
        "invalid": r"StatusCode\.INVALID_ARGUMENT",
        "unknown": r"StatusCode\.NOT_FOUND",
        "exists": r"StatusCode\.ALREADY_EXISTS",
        "unable": r"StatusCode\.(INVALID_ARGUMENT|NOT_FOUND|FAILED_PRECONDITION|UNIMPLEMENTED)",
    },
    "HTTP": {"invalid": "400", "unknown": "404", "exists": "409", "unable": "400|404|501"},
}


@pytest.fixture(scope="module")
def seen(offer: Offer) -> dict[str, Any]:
    """What the script saw, by protocol."""
    return offer.seen_by(".venv-tritonclient", "triton_shared_memory_calls.py")


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_pixels_and_logits_cross_by_shared_memory_either_way(offer: Offer, seen: dict[str, Any], protocol: str) -> None:
    assert len(seen[protocol]["logits"]) == 6
    assert wrong(seen[protocol]["logits"], offer.logits) == {}
    assert wrong(seen[protocol]["files"], offer.file_logits) == {}


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_regions_are_listed_until_they_are_unregistered(seen: dict[str, Any], protocol: str) -> None:
    found = seen[protocol]
    source, sink = ({name: [f"/PREFIX-{name}", 0, 16384]} for name in ("source", "sink"))
    assert found["status"] == source | sink
    assert found["status of one"] == source
    gone = {"gone": ["/PREFIX-gone", 0, 16384]}
    assert found["status after"] == sink | gone
    assert found["all unregistered"] == {}


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_region_that_shrank_is_an_error_of_its_request_and_nothing_else(
    offer: Offer, seen: dict[str, Any], protocol: str
) -> None:
    shrunk = seen[protocol]["a region that shrank"]
    assert wrong({"before": shrunk["before"], "next": seen[protocol]["next"]}, offer.logits) == {}
    statuses = _STATUSES[protocol]
    for way in ("read", "written"):
        expected = {way: (f"{statuses['invalid']}|{statuses['unable']}", "gone")}
        assert refusals_amiss({way: shrunk[way]}, expected) == {}


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_what_lies_outside_a_region_or_is_none_is_refused_with_its_reason(seen: dict[str, Any], protocol: str) -> None:
    statuses = _STATUSES[protocol]
    invalid, unknown, unable = statuses["invalid"], statuses["unknown"], statuses["unable"]
    expected = {
        "region": (unknown, "nowhere"),
        "output region": (unknown, "nowhere"),
        "beyond the end": (invalid, "source"),
        "offset beyond": (invalid, "source"),
        "negative offset": (invalid, "offset"),
        "size is not the shape's": (invalid, "959"),
        "no size": (invalid, "0 bytes"),
        "output too small": (invalid, "80 bytes.*79"),
        "output beyond the end": (invalid, "sink"),
        "no such segment": (unable, "nowhere"),
        "larger than the segment": (unable, "16385"),
        "beyond the segment": (unable, "16384"),
        "not in shared memory": (unable, "passwd|key"),
        "GPU memory": (unable, "(?i)cuda|GPU"),
    }
    assert refusals_amiss(seen[protocol]["refused"], expected) == {}
    assert refusals_amiss({"twice": seen[protocol]["twice"]}, {"twice": (statuses["exists"], "source")}) == {}
    unregistered = {"unregistered": seen[protocol]["unregistered"]}
    assert refusals_amiss(unregistered, {"unregistered": (unknown, "source")}) == {}
