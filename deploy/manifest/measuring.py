"""Measures a package: a real server on loopback, under a bounded load, for some seconds."""

import asyncio
import contextlib
import hashlib
import io
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families

from fuseline.deploy.manifest.measurement import Measurement
from fuseline.serve.client.async_client import AsyncClient
from fuseline.serve.errors import BackendUnavailableError, DeadlineError, FuselineError, InputError, OverloadedError
from fuseline.serve.model_package import MANIFEST_NAME, ModelPackage
from fuseline.serve.process.cpu import this_cpu, usable_cpus
from fuseline.serve.settings import Settings

MOST_SECONDS = 60.0
_START_TIMEOUT_S = 600.0
_END_TIMEOUT_S = 60.0
_CALLERS = 16
"""Tasks that each have one image under way, of its raw pixels."""
_DECODING_CALLERS = 4
"""Tasks that each have one encoded photograph under way."""
_LARGE_ROWS = 64
"""Images of the one large request that is under way: batches are full, and more waits."""
_BURST = 24
"""Requests of `_LARGE_ROWS` photographs that come at once in the end: half as many images again as a queue has room
for."""
_BURST_TIMEOUT_S = 3.0
"""Time in which they are to be answered. Many are refused, once the server has them in memory; rows that would wait for
longer are not measured, as their size is known."""
_PHOTO = 300, 400, 3
"""Height, width and channels of a photograph; of noise, it has some 90 KB as JPEG."""
_LOOK_S = 0.02
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))
"""Calls this machine itself, whatever proxy the environment names."""
_ADDRESS = re.compile(r"gRPC on (\S+?)(?: and |, |\n)")
_TRIES = 3
"""Starts, where the port that was free has been taken by then."""


def measure(package: ModelPackage, *, seconds: float, cpus: int | None = None) -> Measurement:
    """Serve `package` on loopback, load it for `seconds`, and return what it took.

    `cpus`: number of CPUs that the server gets; None: all that this process may use. The load's client runs beside it.

    Raises:
        InputError: there are not so many CPUs here, or the package can't be served here.
        FuselineError: the server failed under the load.
    """
    usable = usable_cpus()
    if cpus is not None and cpus > usable:
        raise InputError(
            f"--cpus was given {cpus}, and {usable} can be measured here; measure where there are as many, with "
            "--measured FILE, and take that file here"
        )
    manifest = (package.folder / MANIFEST_NAME).read_bytes()
    cpus = cpus or usable
    with tempfile.TemporaryDirectory(prefix="fuseline-manifest-") as folder:
        for left in reversed(range(_TRIES)):
            try:
                with _serving(package.folder, cpus, Path(folder)) as server:
                    return _measured(server, package, manifest, cpus, seconds)
            except _PortTakenError:
                if not left:
                    raise
    raise AssertionError("the last try returns or raises")


class _PortTakenError(InputError):
    """A port that was free was taken before the server had it."""


@dataclass(frozen=True, slots=True)
class _Server:
    """A server that is ready."""

    pid: int
    address: str
    http_port: int
    start_s: float


@dataclass(slots=True)
class _Load:
    images: int = 0
    refused: int = 0
    failures: list[FuselineError] = field(default_factory=list)


def _measured(server: _Server, package: ModelPackage, manifest: bytes, cpus: int, seconds: float) -> Measurement:
    ready_bytes = peak_bytes(server.pid)
    before = _metrics(server.http_port)
    began = time.monotonic()
    photo = _photo()
    load = asyncio.run(_load(server.address, package, photo, seconds))
    load_s = time.monotonic() - began
    if load.failures:
        raise load.failures[0]
    if not load.images:
        raise InputError(f"no image was answered in {seconds:g} s; measure for longer (--seconds)")
    after = _metrics(server.http_port)
    asyncio.run(_burst(server.address, photo))
    batches = _grown(before, after, "fuseline_compute_seconds_count")
    told = next(iter(_labels(after, "fuseline_model_info")))
    spec = package.manifest.input
    return Measurement(
        package=package.manifest.name,
        version=package.manifest.version,
        manifest_sha256=hashlib.sha256(manifest).hexdigest(),
        fuseline=version("fuseline"),
        measured_at=datetime.now(UTC).replace(microsecond=0),
        cpu=this_cpu().model[:200],
        cpus=cpus,
        backend=told["backend"],
        device=told["device"],
        precision=told["precision"],
        start_s=round(server.start_s, 3),
        ready_bytes=ready_bytes,
        peak_bytes=peak_bytes(server.pid),
        row_bytes=int(np.prod(spec.row_shape)) * spec.row_dtype.itemsize,
        max_queue_rows=Settings.model_fields["max_queue_rows"].default,
        burst_images=_BURST * _LARGE_ROWS,
        picture_bytes=len(photo),
        load_s=round(load_s, 3),
        images=load.images,
        refused=load.refused,
        batches=int(batches),
        batch_ms=round(1000 * _grown(before, after, "fuseline_compute_seconds_sum") / batches, 3),
        batch_rows=round(
            _grown(before, after, "fuseline_batch_rows_sum") / _grown(before, after, "fuseline_batch_rows_count"), 3
        ),
    )


@contextlib.contextmanager
def _serving(package: Path, cpus: int, folder: Path) -> Iterator[_Server]:
    """Run `fuseline serve` on loopback until it is ready; end it afterwards."""
    http_port = _free_port()
    command = [
        *(sys.executable, "-P", "-m", "fuseline", "serve", str(package.resolve()), "--host", "127.0.0.1"),
        *("--port", "0", "--http-port", str(http_port), "--no-console"),
        # As the manifests say it.
        *("--threads", str(cpus), "--decode-threads", str(cpus)),
    ]
    # Settings of this shell are not the pod's.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("FUSELINE_")}
    # The Fuseline that this is, wherever another one is installed.
    environment["PYTHONPATH"] = os.pathsep.join(path or str(Path.cwd()) for path in sys.path)
    with (folder / "stdout").open("w") as stdout, (folder / "stderr").open("w+") as stderr:
        began = time.monotonic()
        process = _started(command, cpus, environment, stdout, stderr)
        try:
            address = _address_when_ready(process, http_port, folder / "stdout", stderr)
            yield _Server(process.pid, address, http_port, time.monotonic() - began)
            if process.poll() is not None:
                raise FuselineError(f"the server that was measured ended by itself: {_last_line(stderr)}")
        finally:
            process.terminate()
            try:
                process.wait(_END_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _free_port() -> int:
    """Return a port of loopback on which nothing listens at this time."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def _started(
    command: Sequence[str], cpus: int, environment: dict[str, str], stdout: IO[str], stderr: IO[str]
) -> "subprocess.Popen[bytes]":
    """Start a process that may use the first `cpus` of the CPUs that this one may."""
    own = os.sched_getaffinity(0)
    # A process inherits those of the thread that starts it.
    os.sched_setaffinity(0, sorted(own)[:cpus])
    try:
        return subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr, start_new_session=True
        )
    finally:
        os.sched_setaffinity(0, own)


def _address_when_ready(process: "subprocess.Popen[bytes]", http_port: int, stdout: Path, stderr: IO[str]) -> str:
    """Return where a server listens for gRPC, once it is ready and has said that, which it does a moment later."""
    deadline = time.monotonic() + _START_TIMEOUT_S
    while True:
        if _is_ready(http_port) and (said := _ADDRESS.search(stdout.read_text(encoding="utf-8"))) is not None:
            return said[1]
        if process.poll() is not None:
            reason = _last_line(stderr)
            if "Address already in use" in reason:
                raise _PortTakenError(reason)
            kind = BackendUnavailableError if process.returncode == InputError.exit_code else FuselineError
            raise kind(f"the package can't be measured, as it can't be served here: {reason}")
        if time.monotonic() > deadline:
            raise FuselineError(f"the package can't be measured: it was not ready after {_START_TIMEOUT_S:g} s")
        time.sleep(_LOOK_S)


def _is_ready(http_port: int) -> bool:
    try:
        with _OPENER.open(f"http://127.0.0.1:{http_port}/readyz", timeout=5) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def _last_line(stderr: IO[str]) -> str:
    stderr.seek(0)
    lines = stderr.read().splitlines() or ["it gave no reason"]
    return lines[-1].removeprefix("error: ")


def _photo() -> bytes:
    photo = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, _PHOTO, np.uint8)).save(photo, "JPEG")
    return photo.getvalue()


async def _burst(address: str, photo: bytes) -> None:
    """Send `_BURST` large requests at once. That they are refused is no failure; that the server ends is."""

    async def call(client: AsyncClient) -> None:
        with contextlib.suppress(OverloadedError, DeadlineError):
            await client.classify([photo] * _LARGE_ROWS, timeout_s=_BURST_TIMEOUT_S)

    async with AsyncClient(address, retries=0) as client:
        await asyncio.gather(*(call(client) for _ in range(_BURST)))


async def _load(address: str, package: ModelPackage, photo: bytes, seconds: float) -> _Load:
    """Keep single images, photographs and a large request under way for `seconds`."""
    pixels = np.random.default_rng(0).integers(0, 256, package.manifest.input.pixel_shape, np.uint8)
    load = _Load()
    deadline = time.monotonic() + seconds

    async def call(client: AsyncClient, images: list[np.ndarray | bytes]) -> None:
        while time.monotonic() < deadline and not load.failures:
            try:
                await client.classify(images, timeout_s=_END_TIMEOUT_S)
                load.images += len(images)
            except OverloadedError as error:
                load.refused += 1
                await asyncio.sleep(error.retry_after_s or 0.01)
            except FuselineError as error:
                load.failures.append(error)

    async with AsyncClient(address, retries=0) as client:
        await asyncio.gather(
            *(call(client, [pixels]) for _ in range(_CALLERS)),
            *(call(client, [photo]) for _ in range(_DECODING_CALLERS)),
            call(client, [pixels] * _LARGE_ROWS),
        )
    return load


def peak_bytes(pid: int) -> int:
    """Return the largest resident memory so far of a process and those below it, in bytes (proc(5), VmHWM)."""
    process = Path("/proc") / str(pid)
    found = re.search(r"^VmHWM:\s+(\d+) kB$", (process / "status").read_text(encoding="ascii"), flags=re.MULTILINE)
    try:
        children = (process / "task" / str(pid) / "children").read_text(encoding="ascii").split()
    except OSError:
        # Some kernels list none.
        children = []
    return (int(found[1]) * 1024 if found else 0) + sum(peak_bytes(int(child)) for child in children)


_Samples = list[tuple[str, dict[str, str], float]]


def _metrics(http_port: int) -> _Samples:
    with _OPENER.open(f"http://127.0.0.1:{http_port}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    return [
        (sample.name, dict(sample.labels), float(sample.value))
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    ]


def _labels(samples: _Samples, name: str) -> Iterator[dict[str, str]]:
    return (labels for sample, labels, _ in samples if sample == name)


def _grown(before: _Samples, after: _Samples, name: str) -> float:
    """Return by how much the sum of all series called `name` has grown."""
    totals = [sum(value for sample, _, value in samples if sample == name) for samples in (before, after)]
    return totals[1] - totals[0]
