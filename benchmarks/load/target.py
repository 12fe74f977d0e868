"""The running server that is measured: where it is, what it serves, what it must answer."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import grpc
import numpy as np
from numpy.typing import NDArray

from fuseline.benchmarks.harness.answers import check_logits
from fuseline.benchmarks.harness.cpu_time import cpu_seconds
from fuseline.benchmarks.harness.pictures import generated_pictures
from fuseline.benchmarks.harness.subject import Subject
from fuseline.benchmarks.load.calls import CHANNEL_OPTIONS
from fuseline.benchmarks.load.protocols import Classify, OpenInference, WireProtocol, open_inference_from_metadata
from fuseline.protos.classify_pb2 import GetModelRequest, GetModelResponse
from fuseline.protos.classify_pb2_grpc import ClassifierStub
from fuseline.protos.open_inference_pb2 import ModelMetadataRequest, RepositoryIndexRequest
from fuseline.protos.open_inference_pb2_grpc import GRPCInferenceServiceStub
from fuseline.serve.errors import InputError, VerificationError

T = TypeVar("T")

DISTINCT_PICTURES = 8
_CONNECT_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True)
class Target:
    """A running server, what it is asked and what it must answer."""

    address: str
    model: GetModelResponse
    """The model as the server describes it; of other servers only what their metadata say."""
    pixels: NDArray[np.uint8]
    """(pictures, height, width, channels)"""
    expected: NDArray[np.float32]
    """(pictures, classes)"""
    pid: int | None = None
    protocol: WireProtocol = Classify()  # noqa: RUF009 it is frozen
    metrics_address: str | None = None
    """HOST:PORT of the server's Prometheus metrics."""

    @property
    def precision(self) -> str:
        """The precision of the server's artifact."""
        return self.model.precision

    def requests(self, images_per_request: int, *, with_logits: bool) -> tuple[bytes, ...]:
        """One for each picture: request i holds pictures i, i + 1 and so on, around."""
        return tuple(
            self.protocol.request(self.pixels[self.pictures_of(request, images_per_request)], with_logits=with_logits)
            for request in range(len(self.pixels))
        )

    def pictures_of(self, request: int, images_per_request: int) -> list[int]:
        """Which pictures request `request` of `requests` holds."""
        return [(request + offset) % len(self.pixels) for offset in range(images_per_request)]


def connect(address: str, pid: int | None = None, *, stream: bool = False) -> Target:
    """Ask Fuseline's server at `address` for its model and for the logits of a few pictures, each picture alone.

    Those are the expected ones until `expect_logits_of` gets them from elsewhere: they prove at least that neighbours
    in a batch change nothing and that nobody gets another one's answer. `stream`: measure by ClassifyStream.

    Raises:
        InputError: no server answers there, or none of Fuseline's, or `pid` is no process.
    """

    def model_of(channel: grpc.Channel) -> GetModelResponse:
        stub = ClassifierStub(channel)  # type: ignore[no-untyped-call]
        model: GetModelResponse = stub.GetModel(GetModelRequest(), timeout=_CONNECT_TIMEOUT_S)
        return model

    expected_server = "`fuseline serve`, which prints it when it is ready"
    model = _ask(address, expected_server, model_of)
    pixels = generated_pictures((model.height, model.width, model.channels), DISTINCT_PICTURES)
    target = _answered_alone(Target(address, model, pixels, np.empty(0, np.float32), _checked(pid)), expected_server)
    return dataclasses.replace(target, protocol=Classify(is_stream=stream, task=target.model.task))


def connect_open_inference(
    address: str,
    pid: int | None = None,
    *,
    model: str | None = None,
    input_name: str | None = None,
    output_name: str | None = None,
    precision: str = "fp32",
    package: Subject | None = None,
) -> Target:
    """As `connect`, for any server that speaks the Open Inference Protocol.

    Args:
        address: HOST:PORT.
        pid: the server's process, if its CPU time is to be measured.
        model: its name; None: the only one that the server lists.
        input_name: which input takes the pictures; None: its only one.
        output_name: which output is the logits; None: its only one.
        precision: what the model runs in, which the protocol doesn't tell; says how close answers must be.
        package: if an input takes floats, they are normalised as it says.

    Raises:
        InputError: no such server answers there, or its model takes no pictures.
    """

    def protocol_of(channel: grpc.Channel) -> tuple[OpenInference, GetModelResponse]:
        stub = GRPCInferenceServiceStub(channel)  # type: ignore[no-untyped-call]
        name = model or _only_model(stub)
        metadata = stub.ModelMetadata(ModelMetadataRequest(name=name), timeout=_CONNECT_TIMEOUT_S)
        scaling = {}
        if package is not None:
            normalization = package.package.manifest.normalization
            scaling = {"mean": normalization.mean, "std": normalization.std}
        protocol = open_inference_from_metadata(metadata, input_name=input_name, output_name=output_name, **scaling)
        height, width, channels = protocol.row_shape
        described = GetModelResponse(
            name=metadata.name,
            version=metadata.versions[0] if metadata.versions else "",
            backend=metadata.platform,
            precision=precision,
            height=height,
            width=width,
            channels=channels,
        )
        return protocol, described

    expected_server = "a server that speaks the Open Inference Protocol (--model names the model)"
    protocol, described = _ask(address, expected_server, protocol_of)
    pixels = generated_pictures(protocol.row_shape, DISTINCT_PICTURES)
    target = Target(address, described, pixels, np.empty(0, np.float32), _checked(pid), protocol)
    return _answered_alone(target, expected_server)


def expect_logits_of(subject: Subject, target: Target) -> Target:
    """Hold the server's answers against the package's FP32 graph, run here, and expect the latter from now on.

    Raises:
        VerificationError: they differ, or the server serves another model, or the package isn't right itself.
        PackageError: the package is damaged.
        BackendUnavailableError: no CPU runtime is installed here.
    """
    from fuseline.serve.backends import open_backend, why_not_installed
    from fuseline.serve.backends.registry import CPU_BACKENDS
    from fuseline.serve.input_rows import row_maker
    from fuseline.serve.reference import check_reference

    manifest = subject.package.manifest
    row_shape = (target.model.height, target.model.width, target.model.channels)
    # Only Fuseline's own protocol tells labels.
    labels = tuple(target.model.labels) or manifest.labels
    if manifest.input.pixel_shape != row_shape or tuple(manifest.labels) != labels:
        raise VerificationError(
            f"{target.address} serves {target.model.name}, which takes {row_shape} pixels and has "
            f"{len(labels)} labels; the package {manifest.name} takes {manifest.input.pixel_shape} and has "
            f"{manifest.classes}, or others: name the package that is served"
        )
    name = next((name for name in CPU_BACKENDS if why_not_installed(name) is None), CPU_BACKENDS[-1])
    backend, _ = open_backend(subject.package, backend=name, precision="fp32", buckets=(1,))
    try:
        check_reference(backend, subject.package)
        to_rows = row_maker(manifest)
        expected = np.concatenate([backend.infer(to_rows(pixels[None])) for pixels in target.pixels])
    finally:
        backend.close()
    check_logits(f"the server at {target.address}", target.precision, target.expected, expected)
    return dataclasses.replace(target, expected=expected)


def _ask(address: str, expected_server: str, question: Callable[[grpc.Channel], T]) -> T:
    with grpc.insecure_channel(address, options=CHANNEL_OPTIONS) as channel:
        try:
            return question(channel)
        except grpc.RpcError as error:
            raise InputError(
                f"{address} gave no answer that can be used ({error.code().name}: {error.details()}); expected "
                f"HOST:PORT of {expected_server}"
            ) from error


def _answered_alone(target: Target, expected_server: str) -> Target:
    """`target` with the server's own answers to each picture as the expected ones."""
    protocol = target.protocol

    def answers(channel: grpc.Channel) -> list[bytes]:
        call: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(protocol.method)
        return [call(request, timeout=_CONNECT_TIMEOUT_S) for request in target.requests(1, with_logits=True)]

    alone = _ask(target.address, expected_server, answers)
    expected = np.concatenate([protocol.logits(answer) for answer in alone])
    for answer, logits in zip(alone, expected, strict=True):
        protocol.check(f"the server at {target.address}", target.precision, answer, logits[None])
    return dataclasses.replace(target, expected=expected)


def _only_model(stub: GRPCInferenceServiceStub) -> str:
    index = stub.RepositoryIndex(RepositoryIndexRequest(ready=True), timeout=_CONNECT_TIMEOUT_S)
    names: list[str] = sorted({model.name for model in index.models})
    if len(names) != 1:
        raise InputError(f"the server lists the models {', '.join(names) or 'none'}; name one with --model")
    return names[0]


def _checked(pid: int | None) -> int | None:
    if pid is not None and cpu_seconds(pid) is None:
        raise InputError(f"--server-pid {pid}: there is no such process here, or its CPU time can't be read")
    return pid
