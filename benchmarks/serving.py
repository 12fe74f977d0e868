"""`fuseline bench serve`: throughput and latency of a running server, its answers checked."""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import grpc
import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from benchmarks.answers import check_logits, check_response
from benchmarks.cpu_time import cpu_seconds
from benchmarks.load import Load, LoadResult, run_closed_loop
from benchmarks.pictures import generated_pictures
from benchmarks.stats import BURN_IN_S
from benchmarks.subject import Subject
from protos import classify_pb2, classify_pb2_grpc
from serve.errors import InputError, VerificationError

DISTINCT_PICTURES = 8
GENERATOR_LIMIT = 0.8
"""Above this share of one core the generator itself may be what limits the throughput."""
_CONNECT_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True)
class Target:
    """A running server, what it is asked and what it must answer."""

    address: str
    model: classify_pb2.GetModelResponse
    pixels: NDArray[np.uint8]
    """(pictures, height, width, channels)"""
    expected: NDArray[np.float32]
    """(pictures, classes)"""
    pid: int | None = None

    @property
    def precision(self) -> str:
        """Of the server's artifact."""
        return self.model.precision


@dataclass(frozen=True, slots=True)
class ServingFigures:
    """One concurrency, one stretch."""

    concurrency: int
    images_per_request: int
    requests_per_s: float
    images_per_s: float
    latency_ms: dict[str, float]
    """p50, p90, p99, max over every request of the window."""
    requests: int
    window_s: float
    server_cpu_ms_per_request: float | None
    generator_cpu_share: float
    errors: dict[str, int] = field(default_factory=dict)


def connect(address: str, pid: int | None = None) -> Target:
    """Ask the server at `address` for its model and for the logits of a few pictures, each picture alone.

    Those are the expected ones until `expect_logits_of` gets them from elsewhere: they prove at least that neighbours
    in a batch change nothing and that nobody gets another one's answer.

    Raises:
        InputError: no server answers there, or none of Fuseline's, or `pid` is no process.
    """
    if pid is not None and cpu_seconds(pid) is None:
        raise InputError(f"--server-pid {pid}: there is no such process here, or its CPU time can't be read")
    options = [("grpc.max_send_message_length", -1), ("grpc.enable_http_proxy", 0)]
    with grpc.insecure_channel(address, options=options) as channel:
        stub = classify_pb2_grpc.ClassifierStub(channel)  # type: ignore[no-untyped-call]
        try:
            model = stub.GetModel(classify_pb2.GetModelRequest(), timeout=_CONNECT_TIMEOUT_S)
            pixels = generated_pictures((model.height, model.width, model.channels), DISTINCT_PICTURES)
            alone = [
                stub.Classify(classify_pb2.ClassifyRequest.FromString(request), timeout=_CONNECT_TIMEOUT_S)
                for request in _requests(pixels, 1, return_logits=True)
            ]
        except grpc.RpcError as error:
            raise InputError(
                f"{address} gave no answer that can be used ({error.code().name}: {error.details()}); expected "
                "HOST:PORT of `fuseline serve`, which prints it when it is ready"
            ) from error
    expected = np.stack([np.frombuffer(response.results[0].logits, "<f4") for response in alone])
    for response, logits in zip(alone, expected, strict=True):
        check_response(f"the server at {address}", model.precision, response, logits[None])
    return Target(address, model, pixels, expected, pid)


def expect_logits_of(subject: Subject, target: Target) -> Target:
    """Hold the server's answers against the package's FP32 graph, run here, and expect the latter from now on.

    Raises:
        VerificationError: they differ, or the server serves another model, or the package isn't right itself.
        PackageError: the package is damaged.
        BackendUnavailableError: no CPU runtime is installed here.
    """
    from serve.backends import open_backend, why_not_installed
    from serve.reference import check_reference

    manifest = subject.package.manifest
    row_shape = (target.model.height, target.model.width, target.model.channels)
    if manifest.input.row_shape != row_shape or tuple(manifest.labels) != tuple(target.model.labels):
        raise VerificationError(
            f"{target.address} serves {target.model.name}, which takes {row_shape} pixels and has "
            f"{len(target.model.labels)} labels; the package {manifest.name} takes {manifest.input.row_shape} and has "
            f"{manifest.classes}, or others: name the package that is served"
        )
    name = "onnxruntime" if why_not_installed("onnxruntime") is None else "openvino"
    backend, _ = open_backend(subject.package, backend=name, precision="fp32", buckets=(1,))
    try:
        check_reference(backend, subject.package)
        expected = np.concatenate([backend.infer(pixels[None]) for pixels in target.pixels])
    finally:
        backend.close()
    check_logits(f"the server at {target.address}", target.precision, target.expected, expected)
    return Target(target.address, target.model, target.pixels, expected, target.pid)


def measure_serving(
    target: Target,
    *,
    concurrency: int,
    seconds: float,
    burn_in_s: float = BURN_IN_S,
    images_per_request: int = 1,
    processes: int = 1,
) -> ServingFigures:
    """One closed loop against `target`; its answers are checked after the clock has stopped.

    Raises:
        VerificationError: an answer is wrong.
        BackendError: too few answers came to measure anything.
    """
    load = Load(
        address=target.address,
        requests=_requests(target.pixels, images_per_request, return_logits=False),
        burn_in_requests=_requests(target.pixels, images_per_request, return_logits=True),
        concurrency=concurrency,
        seconds=seconds,
        burn_in_s=burn_in_s,
        processes=processes,
    )
    edges: list[tuple[float, float | None]] = []

    def at_edge() -> None:
        edges.append((time.monotonic(), None if target.pid is None else cpu_seconds(target.pid)))

    result = run_closed_loop(load, at_edge)
    _check_answers(target, result, images_per_request)
    return ServingFigures(
        concurrency=concurrency,
        images_per_request=images_per_request,
        requests_per_s=result.requests_per_s,
        images_per_s=result.requests_per_s * images_per_request,
        latency_ms=_percentiles_ms(result.latency_s),
        requests=len(result.latency_s),
        window_s=result.window_s,
        server_cpu_ms_per_request=_cpu_ms_per_request(edges, result.requests_per_s),
        generator_cpu_share=result.generator_cpu_share,
        errors=dict(result.errors),
    )


def sweep(
    target: Target, concurrencies: Sequence[int], say: Callable[[str], None] = lambda _: None, **settings: Any
) -> tuple[ServingFigures, ...]:
    """`measure_serving` at each of `concurrencies`."""
    figures = []
    for concurrency in concurrencies:
        say(f"concurrency {concurrency}")
        figures.append(measure_serving(target, concurrency=concurrency, **settings))
    return tuple(figures)


def as_json(target: Target, figures: Sequence[ServingFigures]) -> dict[str, Any]:
    """Everything measured."""
    model = target.model
    served = {
        "model": model.name,
        "architecture": model.architecture,
        "backend": model.backend,
        "precision": model.precision,
        "input": [model.height, model.width, model.channels],
    }
    return {"server": served, "closed_loop": [asdict(each) for each in figures]}


def as_table(target: Target, figures: Sequence[ServingFigures]) -> Table:
    """A row for each concurrency."""
    model = target.model
    table = Table(title=f"{model.name} on {model.backend} {model.precision}, {model.height} x {model.width} raw pixels")
    headings = ("concurrency", "requests/s", "images/s", "p50 ms", "p90 ms", "p99 ms", "server CPU ms", "generator CPU")
    for heading in (*headings, "errors"):
        table.add_column(heading, justify="right")
    for each in figures:
        cpu = each.server_cpu_ms_per_request
        table.add_row(
            str(each.concurrency),
            f"{each.requests_per_s:.1f}",
            f"{each.images_per_s:.1f}",
            *(f"{each.latency_ms[name]:.2f}" for name in ("p50", "p90", "p99")),
            "?" if cpu is None else f"{cpu:.2f}",
            f"{each.generator_cpu_share:.0%}",
            ", ".join(f"{number} {status}" for status, number in each.errors.items()) or "0",
        )
    if any(each.generator_cpu_share > GENERATOR_LIMIT for each in figures):
        table.caption = "the load generator was nearly busy and may be the limit: give it more --processes"
    return table


def _requests(pixels: NDArray[np.uint8], images_per_request: int, *, return_logits: bool) -> tuple[bytes, ...]:
    """Request i holds pictures i, i + 1 and so on, around; see `_pictures_of`."""
    return tuple(
        classify_pb2.ClassifyRequest(
            images=[classify_pb2.Image(raw=pixels[picture].tobytes()) for picture in pictures],
            return_logits=return_logits,
        ).SerializeToString()
        for pictures in (_pictures_of(index, images_per_request, len(pixels)) for index in range(len(pixels)))
    )


def _pictures_of(request: int, images_per_request: int, pictures: int) -> list[int]:
    return [(request + offset) % pictures for offset in range(images_per_request)]


def _check_answers(target: Target, result: LoadResult, images_per_request: int) -> None:
    if not result.answers:
        raise VerificationError(f"{target.address} answered nothing that could be checked")
    for request, answer in result.answers:
        response = classify_pb2.ClassifyResponse.FromString(answer)
        pictures = _pictures_of(request, images_per_request, len(target.pixels))
        check_response(f"the server at {target.address}", target.precision, response, target.expected[pictures])


def _percentiles_ms(latency_s: NDArray[np.float64]) -> dict[str, float]:
    """Over every request, none binned; `higher`: a latency that was seen, not one between two."""
    values = np.percentile(latency_s, (50, 90, 99, 100), method="higher") * 1e3
    return dict(zip(("p50", "p90", "p99", "max"), map(float, values), strict=True))


def _cpu_ms_per_request(edges: Sequence[tuple[float, float | None]], requests_per_s: float) -> float | None:
    (start_s, before), (end_s, after) = edges
    if before is None or after is None:
        return None
    return 1e3 * (after - before) / (end_s - start_s) / requests_per_s
