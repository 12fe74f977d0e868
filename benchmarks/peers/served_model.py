"""The servers of one model, started for whoever a case needs."""

from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fuseline.benchmarks.engines.contenders import contender_of
from fuseline.benchmarks.engines.process import EngineProcess
from fuseline.benchmarks.harness.answers import check_logits
from fuseline.benchmarks.harness.pictures import as_jpegs, generated_pictures
from fuseline.benchmarks.harness.server_process import free_ports, started_server
from fuseline.benchmarks.harness.subject import Subject, open_subject
from fuseline.benchmarks.harness.tiny_package import write_tiny_package
from fuseline.benchmarks.peers.cases import (
    CONCURRENCY,
    CONTENDERS,
    JPEG_SHAPE,
    PEER_SERVERS,
    SAME_ENGINE,
    Case,
    Contender,
)
from fuseline.benchmarks.peers.cpu_limit import measure_cpu_limit
from fuseline.benchmarks.peers.model import OwnModel, PeerModel
from fuseline.benchmarks.peers.processes import Server, started_peer
from fuseline.serve.backends.onnx_artifact import onnx_artifact
from fuseline.serve.errors import BackendUnavailableError
from fuseline.serve.images import decode_for


@contextmanager
def served_model(case: Case, names: Collection[str], echoes: Mapping[str, Server], folder: Path) -> Iterator[PeerModel]:
    """Start the model of `case` behind each of the contenders `names`, and bare; end them afterwards.

    Raises:
        FuselineError: one of them can't be started, or gives other logits than the bare backend.
    """
    with ExitStack() as stack:
        if case.network:
            int8 = any(CONTENDERS[name].precision == "int8" for name in names)
            subject, threads = stack.enter_context(open_subject(case.network, int8=int8)), 0
        else:
            package_folder = _tiny_package(folder, case.side, case.classes)
            subject, threads = Subject("tiny", package_folder, None), 1
        spec = subject.package.manifest.input
        files = as_jpegs(generated_pictures(JPEG_SHAPE, CONCURRENCY)) if case.jpeg else ()
        pixels = generated_pictures(spec.pixel_shape, CONCURRENCY)
        if files:
            pixels = np.stack([decode_for(spec, file) for file in files])
        bare = stack.enter_context(EngineProcess(SAME_ENGINE, subject, threads))
        expected = {"fuseline": bare.logits(pixels)}
        servers, cpu_limits, left_out, own = {}, {}, {}, {}
        for name in names:
            contender = CONTENDERS[name]
            if contender.server in echoes:
                servers[name] = echoes[contender.server]
            if contender.server not in ("fuseline", "cpu-limit"):
                continue
            checked = _checked_engine(contender, subject, threads, pixels, expected["fuseline"])
            try:
                if contender.server == "cpu-limit":
                    cpu_limits[name] = partial(measure_cpu_limit, stack.enter_context(checked), pixels, files, spec)
                    continue
                if name not in expected:
                    with checked as engine:
                        expected[name] = engine.logits(pixels)
            except BackendUnavailableError as error:
                left_out[name] = f"{contender.title} is left out: {error}"
                continue
            served = subject.package_folder
            if contender.side:
                served = _tiny_package(folder, contender.side, case.classes)
                own[name] = _own_model(served)
            flags = ("--backend", contender.backend, "--precision", contender.precision, "--threads", str(threads))
            http = ("--http-port", str(free_ports(1)[0])) if contender.protocol == "rest" else ()
            process = stack.enter_context(started_server(served, *flags, *http, *contender.flags))
            servers[name] = Server(process.address, process.pid, process.http_address)
        graph = _graph(subject)
        resize = spec.preprocessing.resize_shorter_side if case.jpeg else 0
        for peer_server in PEER_SERVERS:
            if alike := [name for name in names if CONTENDERS[name].server == peer_server]:
                peer = started_peer(peer_server, graph, threads=threads, folder=folder, resize=resize)
                server = stack.enter_context(peer)
                servers |= dict.fromkeys(alike, server)
        name = subject.package.manifest.name
        yield PeerModel(name, servers, bare, pixels, expected, left_out, files, cpu_limits, own)


def _tiny_package(folder: Path, side: int, classes: int) -> Path:
    """The package of the model that costs nothing, written unless it is there."""
    package_folder = folder / f"{side}-{classes}"
    return package_folder if package_folder.is_dir() else write_tiny_package(package_folder, side=side, classes=classes)


def _own_model(package_folder: Path) -> OwnModel:
    subject = Subject("tiny", package_folder, None)
    pixels = generated_pictures(subject.package.manifest.input.row_shape, CONCURRENCY)
    with EngineProcess(SAME_ENGINE, subject, 1) as engine:
        return OwnModel(subject.package.manifest.name, pixels, engine.logits(pixels))


@contextmanager
def _checked_engine(
    contender: Contender, subject: Subject, threads: int, pixels: NDArray[np.uint8], same: NDArray[np.float32]
) -> Iterator[EngineProcess]:
    """The engine of `contender`, its logits held against the logits `same` of the engine that the others run."""
    with EngineProcess(contender_of(contender.backend, contender.precision), subject, threads) as engine:
        check_logits(f"bare {engine.name}", contender.precision, engine.logits(pixels), same)
        yield engine


def _graph(subject: Subject) -> Path:
    """The very file that Fuseline's ONNX Runtime loads."""
    package = subject.package
    return package.checked_path(onnx_artifact(package, "fp32", reader="cpu"))
