"""What each contender is asked, where, and by which transport."""

from contextlib import AbstractContextManager, nullcontext
from functools import partial

from fuseline.benchmarks.load.calls import open_calls
from fuseline.benchmarks.load.http_calls import open_http_calls
from fuseline.benchmarks.load.load import Transport
from fuseline.benchmarks.load.protocols import Classify, OpenInference, RawBytes, WireProtocol
from fuseline.benchmarks.load.rest import RestInference
from fuseline.benchmarks.load.shared_memory import SharedMemoryInference
from fuseline.benchmarks.peers.cases import PEER_SERVERS, Case, Contender
from fuseline.benchmarks.peers.echo_server import ECHO, ECHO_STREAM
from fuseline.benchmarks.peers.http_echo_server import HTTP_ECHO
from fuseline.benchmarks.peers.processes import MOSEC_PATH, PEER_MODEL, Server
from fuseline.serve.model_package import INPUT_NAME, OUTPUT_NAME

PICTURES = 8


def wire_of(contender: Contender, case: Case, model: str, queue_timeout_ms: float = 0.0) -> WireProtocol:
    """The protocol that `contender` is asked in; Fuseline calls its model `model`.

    Requests to Triton say `queue_timeout_ms`, unless that is 0.
    """
    peer = PEER_SERVERS.get(contender.server)
    if peer == "mosec":
        return RawBytes(MOSEC_PATH, case.classes)
    side = contender.side or case.side
    model = PEER_MODEL if peer == "triton" else model
    if contender.protocol == "rest":
        return RestInference(
            model=model,
            input_name=INPUT_NAME,
            row_shape=(side, side, 3),
            output_name=OUTPUT_NAME,
            classes=case.classes,
            images=images_of(contender, case),
        )
    if peer == "triton" or contender.protocol:
        plain = OpenInference(
            model=model,
            input_name=INPUT_NAME,
            datatype="BYTES" if case.jpeg else "UINT8",
            row_shape=(side, side, 3),
            channels_first=False,
            output_name=OUTPUT_NAME,
            queue_timeout_us=round(1e3 * queue_timeout_ms),
        )
        return SharedMemoryInference(plain) if contender.protocol == "shared-memory" else plain
    # The echo gets the very bytes that Fuseline gets.
    return Classify(is_stream=case.stream)


def method_of(contender: Contender, wire: WireProtocol) -> str:
    """Return where requests go: a gRPC method or an HTTP path."""
    if contender.server == "http-echo":
        return HTTP_ECHO
    if contender.server == "echo":
        return ECHO_STREAM if wire.is_stream else ECHO
    return wire.method


def is_http(wire: WireProtocol) -> bool:
    """Whether requests go by HTTP/1.1, or else by gRPC."""
    return isinstance(wire, RawBytes | RestInference)


def transport_of(wire: WireProtocol) -> Transport:
    """Return what sends its requests."""
    if isinstance(wire, RestInference):
        return partial(open_http_calls, fields=wire.fields)
    return open_http_calls if is_http(wire) else open_calls


def address_of(server: Server, wire: WireProtocol) -> str:
    """Return the port of `server` that its requests go to."""
    return (is_http(wire) and server.http_address) or server.address


def made_known(wire: WireProtocol, server: Server) -> AbstractContextManager[None]:
    """Have `server` know the memory that requests refer to, if they do."""
    if isinstance(wire, SharedMemoryInference):
        return wire.region.registered(server.address)
    return nullcontext()


def images_of(contender: Contender, case: Case) -> int:
    """Return the number of images of each request."""
    return 1 if contender.one_image else case.images


def pictures_of(index: int, contender: Contender, case: Case) -> list[int]:
    """Which of the pictures request `index` has."""
    return [(index + offset) % PICTURES for offset in range(images_of(contender, case))]
