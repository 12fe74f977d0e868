"""Builds a TensorRT engine from ONNX: one module for `tensorrt` (10.x, 11.x) and `tensorrt_rtx`.

Precision is not set on the builder, it is written in the graph: the network is strongly typed. So the types of the
parsed network's layers, which are read back before anything is built, prove what an engine computes in.
"""

import hashlib
import threading
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

from fuseline.serve.backends.engine.graph import graph_for_tensorrt
from fuseline.serve.backends.engine.key import EngineDetails, Library
from fuseline.serve.backends.engine.library import check, import_library, logger_of, recent_errors, title
from fuseline.serve.backends.engine.limits import check_computable
from fuseline.serve.backends.engine.precision import (
    AchievedPrecision,
    achieved_precision,
    check_precision,
    described_node,
    precision_counts,
)
from fuseline.serve.backends.engine.progress import BuildProgress, progress_monitor
from fuseline.serve.backends.engine.target import Builder, available_builder
from fuseline.serve.errors import BackendError, InputError
from fuseline.serve.input_format import INPUT_FORMATS
from fuseline.serve.model_package import INPUT_NAME, OUTPUT_NAME
from fuseline.serve.precision import PrecisionName

_POLL_S = 0.02


@dataclass(frozen=True, slots=True)
class EngineBuild:
    """A serialised engine and what it is bound to."""

    plan: bytes
    bound_to: EngineDetails
    precision: PrecisionName
    achieved: AchievedPrecision
    """Precision of the layers that carry weights, read from the parsed network."""

    precision_counts: dict[str, dict[str, int]]
    """Number of layers by kind and by type of the output, read from the parsed network."""

    seconds: float
    timing_cache: bytes | None
    """Measurements of `tensorrt`, which speed the next build on this machine; None: `tensorrt_rtx` measures nothing."""

    @property
    def library(self) -> Library:
        """Library that built the engine, and alone can load it."""
        return self.bound_to.library

    @property
    def key(self) -> str:
        """Stem of the engine's file; see `EngineDetails.key`."""
        return self.bound_to.key

    @property
    def details(self) -> dict[str, Any]:
        """`details` of the engine's artifact in the manifest, by which a server tells whether the engine fits."""
        proof = {"precision_counts": self.precision_counts, "achieved": self.achieved.as_json}
        return self.bound_to.model_dump(mode="json") | proof


def build_engine(
    onnx: bytes,
    *,
    precision: PrecisionName,
    capability: str | None,
    max_batch: int,
    opt_batch: int | None = None,
    allowed_fp32: Collection[str] | None = (),
    layer_names: Mapping[str, str] | None = None,
    input_name: str = INPUT_NAME,
    output_name: str = OUTPUT_NAME,
    on_progress: Callable[[str, float], None] | None = None,
    timing_cache: bytes | None = None,
) -> EngineBuild:
    """Build an engine from a package's graph: one of `INPUT_FORMATS` with dynamic batch in, float32 logits out.

    Args:
        onnx: the package's file, whose sha256 the engine is bound to, already in `precision`.
        precision: precision that the convolutions and matrix multiplications of the parsed network must compute in.
        capability: compute capability, such as `sm89`, to build ahead of time; None: that of the GPU at hand.
            `available_builder` takes two words more.
        max_batch: largest batch in rows; the smallest is 1.
        opt_batch: batch that kernels are chosen for; by default `max_batch`, as speed matters when batches fill.
        allowed_fp32: ONNX nodes that may stay FP32 all the same; None: any. See `check_precision`.
        layer_names: names of the graph's layers -> names in the checkpoint, for messages. See `described_node`.
        input_name: name of the graph's input.
        output_name: name of the graph's output.
        on_progress: is called with the phase and the share of the build that is done, from 0 to 1, never falling; one
            call at a time, from the builder's threads. What it raises stops the build and is raised here.
        timing_cache: timing cache of an earlier build; only `tensorrt` uses it.

    Raises:
        InputError: an unknown capability, a batch profile out of order, or a graph of another form.
        BackendUnavailableError: no library can build for `capability` here, or none can compute the graph on it.
        VerificationError: layers that carry weights are not in `precision`; the message names them.
        BackendError: the parser or the builder failed; the message has all of its errors, with the ONNX nodes.
    """
    profile = batch_profile(max_batch, opt_batch)
    choice = available_builder(capability)
    progress = BuildProgress(on_progress)
    build = partial(
        _build,
        onnx,
        choice,
        precision=precision,
        profile=profile,
        allowed_fp32=allowed_fp32,
        layer_names=layer_names,
        names=(input_name, output_name),
        progress=progress,
        timing_cache=timing_cache,
    )
    return _in_thread(build, progress)


def batch_profile(max_batch: int, opt_batch: int | None = None) -> tuple[int, int, int]:
    """Return the smallest, optimal and largest batch in rows. Raises `InputError` if they are out of order."""
    profile = (1, max_batch if opt_batch is None else opt_batch, max_batch)
    if not 1 <= profile[1] <= profile[2]:
        raise InputError(f"batch profile {profile} is out of order; it takes 1 <= optimal <= largest")
    return profile


def engine_details(choice: Builder, graph_sha256: str, profile: tuple[int, int, int]) -> EngineDetails:
    """Return what the engine that `choice` builds from that graph is bound to, which is known before it is built.

    Raises:
        BackendUnavailableError: the library can't be imported.
    """
    return EngineDetails(
        library=choice.library,
        library_version=import_library(choice.library).__version__,
        compute_capability=choice.capability,
        profile=profile,
        graph_sha256=graph_sha256,
    )


def _in_thread(build: Callable[[], EngineBuild], progress: BuildProgress) -> EngineBuild:
    """Return what `build` returns, which runs in a thread; an interruption stops it at its next step and is raised.

    A Ctrl-C is raised in the main thread, and TensorRT swallows what is raised in its callbacks, so these must not run
    there. What the build uses belongs to its thread: wherever signals end this call, TensorRT keeps what it works with.
    """
    building = threading.Lock()
    built: list[EngineBuild] = []
    failed: list[BaseException] = []

    def run() -> None:
        with building:
            try:
                built.append(build())
            # The error is raised again where the build is waited for.
            except BaseException as error:  # noqa: BLE001
                failed.append(error)

    # The main thread only sleeps, as an exception of a signal's handler breaks other waits: up to Python 3.12 it marks
    # a thread that is joined as ended, so that not even the interpreter's end waits for it
    # (https://github.com/python/cpython/issues/90882), and a second one makes `Event.wait` fail.
    try:
        threading.Thread(target=run, name="tensorrt-build").start()
        while not (built or failed):
            time.sleep(_POLL_S)
    except BaseException as error:
        progress.stop(error)
        # A thread that has not come to `building` yet finds that it must not build.
        while building.locked():
            with suppress(KeyboardInterrupt):
                time.sleep(_POLL_S)
        raise
    if failed:
        raise failed.pop()
    return built[0]


def _build(
    onnx: bytes,
    choice: Builder,
    *,
    precision: PrecisionName,
    profile: tuple[int, int, int],
    allowed_fp32: Collection[str] | None,
    layer_names: Mapping[str, str] | None,
    names: tuple[str, str],
    progress: BuildProgress,
    timing_cache: bytes | None,
) -> EngineBuild:
    trt = import_library(choice.library)
    logger_of(trt).recent_errors.clear()
    started = time.monotonic()
    bound_to = engine_details(choice, hashlib.sha256(onnx).hexdigest(), profile)
    builder = _new_builder(trt)
    # The network's weights lie in the parser, which must be kept alive.
    network, _parser = _parse(trt, builder, graph_for_tensorrt(onnx, names[0]), layer_names)
    row_shape = _row_shape(network, trt, names)
    check_precision(network, precision, allowed_fp32=allowed_fp32, layer_names=layer_names)
    check_computable(network, choice, layer_names)
    config = _configure(
        trt, builder, choice, precision=precision, profile=profile, row_shape=row_shape, input_name=names[0]
    )
    cache = _use_timing_cache(trt, config, timing_cache) if choice.library == "tensorrt" else None
    # TensorRT holds no reference to its monitor.
    config.progress_monitor = _monitor = progress_monitor(trt, progress)
    plan = None if progress.error else builder.build_serialized_network(network, config)
    if progress.error is not None:
        raise progress.error
    progress.finish_all()
    return EngineBuild(
        plan=bytes(check(plan, "build the engine", trt)),
        bound_to=bound_to,
        precision=precision,
        achieved=achieved_precision(network, trt),
        precision_counts=precision_counts(network),
        seconds=time.monotonic() - started,
        timing_cache=bytes(cache.serialize()) if cache is not None else None,
    )


def _new_builder(trt: Any) -> Any:
    try:
        return trt.Builder(logger_of(trt))
    except TypeError as error:
        raise BackendError(f"{title(trt)} can't make a builder: {recent_errors(trt) or error}") from error


def _parse(trt: Any, builder: Any, onnx: bytes, layer_names: Mapping[str, str] | None) -> tuple[Any, Any]:
    # TensorRT 11 has no other networks than strongly typed ones and may drop the flag.
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    network = check(builder.create_network(0 if flag is None else 1 << int(flag)), "create a network", trt)
    parser = trt.OnnxParser(network, logger_of(trt))
    if not parser.parse(onnx):
        errors = [_parser_error(parser.get_error(index), layer_names) for index in range(parser.num_errors)]
        raise BackendError(f"{title(trt)} can't read the ONNX graph: {'; '.join(errors)}")
    return network, parser


def _parser_error(error: Any, layer_names: Mapping[str, str] | None) -> str:
    where = ""
    if error.node() >= 0:
        where = f"node {error.node()} {error.node_operator()} {described_node(error.node_name(), layer_names)!r}: "
    return f"{where}{' '.join(error.desc().split())} ({error.code().name})"


def _row_shape(network: Any, trt: Any, names: tuple[str, str]) -> tuple[int, int, int]:
    """Return the shape of one row of the network's input, after checking the form of its input and output.

    An empty file parses without error.
    """
    tensors = [network.get_input(index) for index in range(network.num_inputs)]
    tensors += [network.get_output(index) for index in range(network.num_outputs)]
    form = [(tensor.name, tensor.dtype, tuple(tensor.shape)) for tensor in tensors]
    taken = {trt.DataType.__members__[row.tensorrt_type] for row in INPUT_FORMATS.values()}
    match form:
        case [
            (str(input_name), input_type, (-1, int(first), int(second), int(third))),
            (str(output_name), output_type, (-1, _)),
        ]:
            typed = input_type in taken and output_type == trt.DataType.FLOAT
            if (input_name, output_name) == names and typed and min(first, second, third) > 0:
                return first, second, third
    found = ", ".join(f"{name} {dtype.name} {shape}" for name, dtype, shape in form) or "nothing"
    raise InputError(
        f"the graph has {found}; an engine is built from {names[0]} UINT8 (-1, height, width, channels), or FLOAT or "
        f"HALF (-1, channels, height, width), and {names[1]} FLOAT (-1, classes), as `fuseline export` writes them"
    )


def _configure(
    trt: Any,
    builder: Any,
    choice: Builder,
    *,
    precision: PrecisionName,
    profile: tuple[int, int, int],
    row_shape: tuple[int, int, int],
    input_name: str,
) -> Any:
    config = builder.create_builder_config()
    batches = builder.create_optimization_profile()
    batches.set_shape(input_name, *((rows, *row_shape) for rows in profile))
    if config.add_optimization_profile(batches) < 0:
        raise BackendError(f"{title(trt)} refuses the batch profile {profile}: {recent_errors(trt)}")
    if choice.setting is not None:
        config.num_compute_capabilities = 1
        target = trt.ComputeCapability.__members__[choice.setting]
        check(config.set_compute_capability(target, 0), f"target {choice.capability}", trt)
    # Without this the engine forgets what its layers compute in, and no inspector can prove it.
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if precision == "fp32":
        # TF32 keeps 10 bits of the mantissa: a third precision that nobody asked for.
        config.clear_flag(trt.BuilderFlag.TF32)
    if hasattr(trt.BuilderFlag, "REQUIRE_USER_ALLOCATION"):
        # The engine allocates nothing while it runs, so that its work can be captured in a CUDA graph.
        config.set_flag(trt.BuilderFlag.REQUIRE_USER_ALLOCATION)
    return config


def _use_timing_cache(trt: Any, config: Any, timing_cache: bytes | None) -> Any:
    """Give the build `timing_cache`, or an empty one if that is of another GPU or TensorRT: it only saves time."""
    for data in (timing_cache or b"", b""):
        cache = config.create_timing_cache(data)
        if cache is not None and config.set_timing_cache(cache, ignore_mismatch=False):
            return cache
    raise BackendError(f"{title(trt)} refuses even an empty timing cache: {recent_errors(trt)}")
