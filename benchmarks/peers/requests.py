"""What each contender is asked, where, and by which transport."""

from fuseline.benchmarks.load.calls import open_calls
from fuseline.benchmarks.load.http_calls import open_http_calls
from fuseline.benchmarks.load.load import Transport
from fuseline.benchmarks.load.protocols import Classify, OpenInference, RawBytes, WireProtocol
from fuseline.benchmarks.peers.cases import PEER_SERVERS, Case, Contender
from fuseline.benchmarks.peers.echo_server import ECHO, ECHO_STREAM
from fuseline.benchmarks.peers.processes import MOSEC_PATH, PEER_MODEL
from fuseline.serve.model_package import INPUT_NAME, OUTPUT_NAME

PICTURES = 8


def wire_of(contender: Contender, case: Case, queue_timeout_ms: float = 0.0) -> WireProtocol:
    """The protocol that `contender` is asked in. Requests to Triton say `queue_timeout_ms`, unless that is 0."""
    peer = PEER_SERVERS.get(contender.server)
    if peer == "triton":
        return OpenInference(
            model=PEER_MODEL,
            input_name=INPUT_NAME,
            datatype="BYTES" if case.jpeg else "UINT8",
            row_shape=(case.side, case.side, 3),
            channels_first=False,
            output_name=OUTPUT_NAME,
            queue_timeout_us=round(1e3 * queue_timeout_ms),
        )
    if peer == "mosec":
        return RawBytes(MOSEC_PATH, case.classes)
    # The echo gets the very bytes that Fuseline gets.
    return Classify(is_stream=case.stream)


def method_of(contender: Contender, wire: WireProtocol) -> str:
    """Return where requests go: a gRPC method or an HTTP path."""
    if contender.server == "echo":
        return ECHO_STREAM if wire.is_stream else ECHO
    return wire.method


def transport_of(wire: WireProtocol) -> Transport:
    """HTTP for raw bytes, else gRPC."""
    return open_http_calls if isinstance(wire, RawBytes) else open_calls


def images_of(contender: Contender, case: Case) -> int:
    """Return the number of images of each request."""
    return 1 if contender.one_image else case.images


def pictures_of(index: int, contender: Contender, case: Case) -> list[int]:
    """Which of the pictures request `index` has."""
    return [(index + offset) % PICTURES for offset in range(images_of(contender, case))]
