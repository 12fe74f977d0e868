"""gRPC calls beyond their one message: the metadata of a call, and the messages of a stream."""

import re
from collections.abc import Iterator
from contextlib import suppress

import grpc
from google.protobuf.message import DecodeError

from fuseline.protos.classify_pb2 import ClassifyRequest, ClassifyResponse
from fuseline.protos.open_inference_pb2 import ModelInferRequest, ModelStreamInferResponse
from tests.fakes.colours import noise
from tests.fuzz.served import CLIENTS_ERRORS
from tests.fuzz.servers import TOKENS
from tests.fuzz.target import Target
from tests.serve.services.classify_requests import raw_request
from tests.serve.services.open_inference_requests import infer_request

_CODES = {code.value[0] for code in CLIENTS_ERRORS}
_BINARY = "-bin"
_METHODS = (
    ("/fuseline.v1.Classifier/ClassifyStream", ClassifyRequest, ClassifyResponse),
    ("/inference.GRPCInferenceService/ModelStreamInfer", ModelInferRequest, ModelStreamInferResponse),
)


def _same(data: bytes) -> bytes:
    return data


def streams(channel: grpc.Channel) -> Target:
    """Return the target of both streams: what is no message may end one, anything else is answered in it."""
    opened = [channel.stream_stream(path, _same, answer.FromString) for path, _, answer in _METHODS]

    def run(data: bytes) -> None:
        which = sum(data[:1]) % len(_METHODS)
        messages = list(_messages(data[1:]))
        call = opened[which](iter(messages), timeout=20)
        answers: list[ClassifyResponse | ModelStreamInferResponse] = []
        with suppress(grpc.RpcError):
            answers.extend(call)
        code, details = call.code(), call.details() or ""
        assert len(details) < 5000
        readable = sum(1 for _ in _readable(messages, _METHODS[which][1]))
        expected = grpc.StatusCode.OK if readable == len(messages) else grpc.StatusCode.INVALID_ARGUMENT
        assert code is expected, f"{code}: {details}"
        assert len(answers) == readable, f"{len(answers)} answers to {readable} messages, then {code}: {details}"
        for answer in answers:
            assert answer.error.code in _CODES if isinstance(answer, ClassifyResponse) else len(str(answer)) < 10_000

    return Target(run, _stream_seeds)


def _messages(data: bytes) -> Iterator[bytes]:
    """Messages, each with its length in two bytes before it; of the last one there may be less."""
    while len(data) >= 2:
        size = int.from_bytes(data[:2])
        yield data[2 : 2 + size]
        data = data[2 + size :]


def _readable(messages: list[bytes], kind: type[ClassifyRequest | ModelInferRequest]) -> Iterator[bytes]:
    """The messages before the first that is none."""
    for message in messages:
        try:
            kind.FromString(message)
        except DecodeError:
            return
        yield message


def _stream_seeds() -> list[bytes]:
    sound = raw_request(noise(1), id="1", model="colours").SerializeToString()
    unknown = raw_request(noise(1), id="2", model="none", top_k=0).SerializeToString()
    tensors = infer_request(noise(1), id="3", model_name="colours").SerializeToString()
    return [
        _framed(b"\0", sound, unknown, sound),
        _framed(b"\0", sound, b"\xff\xff", sound),
        _framed(b"\0", sound, sound[:20], sound),
        _framed(b"\1", tensors, b"", tensors),
        _framed(b"\1", tensors, b"\x0a\xff", tensors),
    ]


def _framed(which: bytes, *messages: bytes) -> bytes:
    return which + b"".join(len(message).to_bytes(2) + message for message in messages)


def call_metadata(channel: grpc.Channel) -> Target:
    """Return the target of a call's metadata, `key: value` in lines, at a server that knows `TOKENS` and traces."""
    call = channel.unary_unary("/fuseline.v1.Classifier/Classify", _same, _same)
    request = raw_request(noise(1), model="colours").SerializeToString()
    codes = CLIENTS_ERRORS | {grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED}

    def run(data: bytes) -> None:
        its = call.future(request, timeout=20, metadata=list(_metadata(data)))
        code, details = its.code(), its.details() or ""
        assert code in codes, f"{code}: {details}"
        assert len(details) < 5000
        for key, value in its.trailing_metadata() or ():
            assert key != "x-request-id" or re.fullmatch(r"[!-~]{1,128}", str(value)), value

    return Target(run, _metadata_seeds)


def _metadata(data: bytes) -> Iterator[tuple[str, str | bytes]]:
    """Metadata that gRPC's client sends: it refuses characters beyond those that HTTP/2 has in fields."""
    for line in data.split(b"\n"):
        key, _, value = line.partition(b":")
        name = re.sub(rb"[^a-z0-9_.-]", b"", key.lower()).decode()
        text = re.sub(rb"[^ -~]", b"?", value).strip()
        if name == _BINARY:
            # It takes bytes for this name in Python, and refuses them further down unless they are text.
            yield name, text
        elif name.endswith(_BINARY):
            yield name, value
        elif name:
            yield name, text.decode()


def _metadata_seeds() -> list[bytes]:
    trace = "traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\ntracestate: a=b\nbaggage: a=b;c"
    infer = f"authorization: Bearer {TOKENS['infer']}"
    return [
        f"{infer}\nx-request-id: a-1\npriority: bulk\n{trace}".encode(),
        f"{infer}\n{trace}\nx-priority: 1\nx-request-id: 1\nx-request-id: 2\ngrpc-timeout: 5S".encode(),
        f"authorization: bearer  {TOKENS['admin']}\npriority: u=1, i\ngrpc-trace-bin: abcd".encode(),
        f"authorization: Basic YTpi\n{infer}\ngrpc-encoding: gzip".encode(),
    ]
