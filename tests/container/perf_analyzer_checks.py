"""NVIDIA's perf_analyzer, unmodified, against `fuseline serve`. `make container-test` runs this.

Where its answers come in messages it holds them against the logits of the package's backend itself; shared memory it
doesn't look into, so there what it counts is held against the server's own statistics.
"""

import base64
import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from fuseline.serve.backends import open_backend
from fuseline.serve.model_package import load_package
from tests.container.newer_glibc import runnable
from tests.fakes.colours import noise, write_colours_package
from tests.serve.processes import FAST, ROOT, ServerProcess, free_port, get, server_process

PROGRAM = ROOT / "build" / "perf-analyzer" / "perf_analyzer" / "bin" / "perf_analyzer"
# Few requests a window, and any of three windows is stable.
SHORT = ("--measurement-mode", "count_windows", "--measurement-request-count", 20, "-s", 999, "--max-trials", 3)
REGION = ("--shared-memory=system", "--output-shared-memory-size", 1024)


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The colours model."""
    return write_colours_package(tmp_path_factory.mktemp("perf_analyzer") / "colours")


@pytest.fixture(scope="module")
def served(package: Path) -> Iterator[ServerProcess]:
    """A server of it, with HTTP."""
    with server_process(package, *FAST, "--http-port", free_port()) as server:
        yield server


@pytest.fixture(scope="module")
def perf_analyzer() -> list[str]:
    """The command that runs it."""
    assert PROGRAM.is_file(), f"there is no {PROGRAM}; make container-test makes it"
    return runnable(PROGRAM)


def run(perf_analyzer: list[str], server: ServerProcess, protocol: str, *flags: object) -> tuple[int, str]:
    """Its exit code, and all that it wrote."""
    address = server.address if protocol == "grpc" else server.http_address
    command = [*perf_analyzer, "-m", "colours", "-i", protocol, "-u", address, *SHORT, *flags]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=120, check=False)
    return done.returncode, done.stdout + done.stderr


def counted(output: str) -> tuple[int, int]:
    """Requests that it sent in its windows, and images that the server told it of."""
    requests, images = re.search(r"Request count: (\d+)", output), re.search(r"Inference count: (\d+)", output)
    assert requests is not None, output
    assert images is not None, output
    return int(requests[1]), int(images[1])


def write_pictures(folder: Path, package: Path, *, off_by: float = 0.0) -> Path:
    """Pictures as --input-data takes them, and what their logits have to be."""
    pixels = noise(3)
    backend, _ = open_backend(load_package(package), buckets=(1,), backend="onnxruntime", threads=1)
    try:
        logits = [backend.infer(row[None])[0] + np.float32(off_by) for row in pixels]
    finally:
        backend.close()
    file = folder / "pictures.json"
    data = [{"image": _content(row)} for row in pixels]
    file.write_text(json.dumps({"data": data, "validation_data": [{"logits": _content(row)} for row in logits]}))
    return file


def _content(row: NDArray[np.generic]) -> dict[str, object]:
    return {"content": {"b64": base64.b64encode(row.tobytes()).decode()}, "shape": list(row.shape)}


@pytest.mark.parametrize(
    ("protocol", "flags"),
    [
        ("grpc", ()),
        ("grpc", ("--streaming",)),
        ("http", ()),
        ("http", ("--input-tensor-format=json", "--output-tensor-format=json")),
    ],
    ids=["gRPC", "stream", "HTTP", "HTTP with JSON"],
)
def test_it_finds_the_logits_of_pictures_right(
    perf_analyzer: list[str],
    served: ServerProcess,
    package: Path,
    tmp_path: Path,
    protocol: str,
    flags: tuple[object, ...],
) -> None:
    code, output = run(perf_analyzer, served, protocol, "--input-data", write_pictures(tmp_path, package), *flags)
    assert code == 0, output
    requests, images = counted(output)
    assert 0 < requests <= images <= requests + 3


def test_it_would_find_wrong_logits(
    perf_analyzer: list[str], served: ServerProcess, package: Path, tmp_path: Path
) -> None:
    wrong = write_pictures(tmp_path, package, off_by=1e-3)
    code, output = run(perf_analyzer, served, "grpc", "--input-data", wrong)
    assert code != 0
    assert "Output doesn't match expected output" in output


@pytest.mark.parametrize("protocol", ["grpc", "http"])
@pytest.mark.parametrize("batch", [1, 16])
def test_its_pictures_and_logits_cross_by_system_shared_memory(
    perf_analyzer: list[str], served: ServerProcess, protocol: str, batch: int
) -> None:
    assert served.http_address is not None
    code, output = run(perf_analyzer, served, protocol, *REGION, "-b", batch, "--concurrency-range", 4)
    assert code == 0, output
    requests, images = counted(output)
    assert 0 < batch * requests <= images
    assert get(served.http_address, "/v2/systemsharedmemory/status") == (200, "[]")


def test_it_sends_at_a_rate_over_http(perf_analyzer: list[str], served: ServerProcess) -> None:
    code, output = run(perf_analyzer, served, "http", "--request-rate-range", 100)
    assert code == 0, output
    throughput = re.search(r"Throughput: ([\d.]+) infer/sec", output)
    assert throughput is not None
    assert float(throughput[1]) == pytest.approx(100, rel=0.2)
