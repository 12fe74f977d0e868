"""`python -m fuseline.benchmarks.swaps PACKAGE`: what requests take while another version of their model is loaded.

The server is a process of its own on this machine, with a repository of copies of the package, which it is asked to
load one after another. Requests are raw pixels of one image.
"""

import shutil
import tempfile
import threading
import time
from pathlib import Path
from typing import Annotated

import grpc
import numpy as np
import typer

from fuseline.benchmarks.harness.machine import describe, machine_facts
from fuseline.benchmarks.harness.server_process import started_server
from fuseline.protos.classify_pb2 import ClassifyRequest, Image
from fuseline.protos.classify_pb2_grpc import ClassifierStub
from fuseline.protos.open_inference_pb2 import RepositoryModelLoadRequest
from fuseline.protos.open_inference_pb2_grpc import GRPCInferenceServiceStub
from fuseline.serve.command_line import run_command_line
from fuseline.serve.model_package import load_package

WARM_SECONDS = 1.0


def main(
    package: Annotated[Path, typer.Argument(metavar="PACKAGE", help="Model package that is served.")],
    swaps: Annotated[int, typer.Option(min=1, max=100, help="Number of versions that take over.")] = 6,
    seconds: Annotated[float, typer.Option(min=0.5, max=60, help="Time before each swap.")] = 3.0,
    rate: Annotated[float, typer.Option(min=0, help="Requests/s of the one caller; 0: it never pauses.")] = 0.0,
    flags: Annotated[str, typer.Option(help="Flags of the server, such as '--workers 2'.")] = "",
) -> None:
    """Measure one caller's latency while versions are swapped, and between swaps, in turn."""
    name = load_package(package).manifest.name
    print(describe(machine_facts()))
    with tempfile.TemporaryDirectory() as folder:
        versions = Path(folder) / name
        shutil.copytree(package, versions / "1")
        repository = ("--model-repository", folder, "--model-control-mode", "explicit", "--load-model", name)
        with started_server(None, *repository, *flags.split()) as server:
            calls = Calls(server.address, package, rate)
            time.sleep(WARM_SECONDS)
            between, loads = [], []
            with grpc.insecure_channel(server.address) as channel:
                control = GRPCInferenceServiceStub(channel)
                for version in range(2, swaps + 2):
                    began = time.monotonic()
                    time.sleep(seconds)
                    shutil.copytree(package, Path(folder) / "next")
                    (Path(folder) / "next").rename(versions / str(version))
                    between.append((began, time.monotonic()))
                    control.RepositoryModelLoad(RepositoryModelLoadRequest(model_name=name))
                    loads.append((between[-1][1], time.monotonic()))
            calls.end()
    for what, stretches in (("between swaps", between), ("during swaps", loads)):
        latencies = calls.within(stretches)
        p50, p99 = np.percentile(latencies, (50, 99))
        print(f"{what}: p50 {1000 * p50:.1f} ms, p99 {1000 * p99:.1f} ms, {len(latencies)} requests")
    took = float(np.median([end - began for began, end in loads]))
    print(f"{calls.failed} failed; a swap takes {took:.2f} s")


class Calls:
    """One caller, in a thread, until `end`."""

    def __init__(self, address: str, package: Path, rate: float) -> None:
        shape = load_package(package).manifest.input.pixel_shape
        pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8).tobytes()
        self._request = ClassifyRequest(images=[Image(raw=pixels)])
        self._address = address
        self._rate = rate
        self._ended = threading.Event()
        self._times: list[tuple[float, float]] = []
        self.failed = 0
        """Number of calls that failed."""
        self._thread = threading.Thread(target=self._call)
        self._thread.start()

    def end(self) -> None:
        """Send nothing more, and wait for what is under way."""
        self._ended.set()
        self._thread.join()

    def within(self, stretches: list[tuple[float, float]]) -> list[float]:
        """Return the seconds of the calls that overlapped one of `stretches`."""
        return [
            end - sent for sent, end in self._times if any(end > first and sent < last for first, last in stretches)
        ]

    def _call(self) -> None:
        due = time.monotonic()
        with grpc.insecure_channel(self._address) as channel:
            stub = ClassifierStub(channel)
            while not self._ended.is_set():
                sent = time.monotonic()
                if self._rate:
                    # From when it was due: a caller who waits for a slow answer must not hide the next.
                    due += 1 / self._rate
                    self._ended.wait(due - sent)
                    sent = due
                try:
                    stub.Classify(self._request)
                except grpc.RpcError:
                    self.failed += 1
                self._times.append((sent, time.monotonic()))


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(main)
    run_command_line(app)
