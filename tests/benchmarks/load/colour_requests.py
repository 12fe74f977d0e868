"""Requests for the model of colours, and a closed loop that sends them."""

from fuseline.benchmarks.load.closed_loop import ClosedLoad
from fuseline.protos import classify_pb2
from tests.fakes.colours import LABELS, plain


def request(colour: str, **fields: object) -> bytes:
    image = classify_pb2.Image(raw=plain(colour).tobytes())
    return classify_pb2.ClassifyRequest(images=[image], **fields).SerializeToString()


def load(address: str, **changes: object) -> ClosedLoad:
    settings: dict = {
        "address": address,
        "requests": tuple(request(colour) for colour in LABELS),
        "burn_in_requests": tuple(request(colour, return_logits=True) for colour in LABELS),
        "concurrency": 4,
        "seconds": 0.3,
        "burn_in_s": 0.1,
    }
    return ClosedLoad(**(settings | changes))
