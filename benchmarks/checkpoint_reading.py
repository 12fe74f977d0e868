"""`fuseline bench read`: time and memory of reading a checkpoint and recognising its network, in fresh processes."""

import hashlib
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from fuseline.benchmarks.harness.cpu_time import peak_memory_mb
from fuseline.benchmarks.harness.options import Json, measuring
from fuseline.benchmarks.harness.results import command_line
from fuseline.benchmarks.harness.stats import spread_of
from fuseline.serve.errors import BackendError, FuselineError, InputError, VerificationError

TIME_BAR_S = 3.0
"""Median of the repeats."""
MEMORY_BAR = 3.0
"""Peak memory of the worst repeat, in times of the file's size."""
FORMS = {"pt": "torch.save", "safetensors": "safetensors"}
_ANSWER_TIMEOUT_S = 600.0


def read(
    model: Annotated[str, typer.Argument(metavar="NAME", help="A network of torchvision's.")] = "resnet152",
    repeats: Annotated[int, typer.Option(min=1, max=1000, help="How many fresh processes read each file.")] = 3,
    json: Json = None,
) -> None:
    """Measure reading a checkpoint and recognising its network: seconds and peak memory, of torch.save and safetensors.

    The exit code is 1 above a bar: 3 s, and 3 times the file's size.
    """
    with measuring("read", command_line("read", model, repeats=repeats), json) as (say, finish):
        say("writing the files")
        with written_network(model) as (files, digest):
            readings = measure_reading(files, digest, repeats=repeats, say=say)
        finish(as_table(model, readings), as_json(model, readings))
    if not all(reading.passed for reading in readings):
        raise typer.Exit(1)


@dataclass(frozen=True, slots=True)
class Reading:
    """One form of file, read by one fresh process in each repeat."""

    form: str
    file_mb: float
    seconds: tuple[float, ...]
    """Time to read the file, check and digest it, recognise the network and load it."""
    peak_mb: tuple[float, ...]
    """Peak resident memory above what the process had when it had imported everything; empty where it can't be read."""

    @property
    def peak_ratio(self) -> float | None:
        """Peak memory of the worst repeat, in times of the file's size."""
        return max(self.peak_mb) / self.file_mb if self.peak_mb else None

    @property
    def passed(self) -> bool:
        """Whether both bars are kept; memory that can't be measured keeps none."""
        return spread_of(self.seconds).median < TIME_BAR_S and (self.peak_ratio or MEMORY_BAR) < MEMORY_BAR


def measure_reading(
    files: Mapping[str, Path], expected: str, *, repeats: int, say: Callable[[str], None] = lambda _: None
) -> list[Reading]:
    """Read each of `files` (form to path) `repeats` times, taking turns; what is read must have the digest `expected`.

    Raises:
        VerificationError: other weights were read than were written.
        FuselineError: what reading or recognising raised.
        BackendError: a process died.
    """
    found: dict[str, list[tuple[float, float | None]]] = {form: [] for form in files}
    for repeat in range(repeats):
        for form, path in files.items():
            say(f"repeat {repeat + 1} of {repeats}: {FORMS[form]}")
            seconds, peak_mb, digest = _in_fresh_process(path)
            if digest != expected:
                raise VerificationError(f"{FORMS[form]}: other weights were read than were written")
            found[form].append((seconds, peak_mb))
    return [
        Reading(
            form,
            files[form].stat().st_size / 1e6,
            tuple(seconds for seconds, _ in runs),
            tuple(peak for _, peak in runs if peak is not None),
        )
        for form, runs in found.items()
    ]


@contextmanager
def written_network(model: str) -> Iterator[tuple[dict[str, Path], str]]:
    """Files of torchvision's `model` with random weights, by form, and the digest of the weights.

    Raises:
        InputError: torchvision has no such classifier.
    """
    import torch
    import torchvision
    from safetensors.torch import save_file

    if model not in torchvision.models.list_models(module=torchvision.models):
        raise InputError(f"{model} is no classifier of torchvision; resnet18, resnet50, resnet152 … were expected")
    torch.manual_seed(0)
    weights = torchvision.models.get_model(model, weights=None).state_dict()
    with tempfile.TemporaryDirectory(prefix="fuseline-bench-") as folder:
        files = {form: Path(folder) / f"{model}.{form}" for form in FORMS}
        torch.save(weights, files["pt"])
        save_file(weights, files["safetensors"])
        yield files, _digest(weights)


def as_json(model: str, readings: Sequence[Reading]) -> dict[str, Any]:
    """Every repeat, the medians and quartiles, the verdicts."""
    return {
        "model": model,
        "bars": {"seconds": TIME_BAR_S, "peak_ratio": MEMORY_BAR},
        "readings": [
            asdict(reading)
            | {
                "seconds_spread": asdict(spread_of(reading.seconds)),
                "peak_ratio": reading.peak_ratio,
                "passed": reading.passed,
            }
            for reading in readings
        ],
    }


def as_table(model: str, readings: Sequence[Reading]) -> Table:
    """Median (quartiles) of the seconds, the worst of the memory, the verdicts below."""
    table = Table(title=f"reading and recognising {model}: {len(readings[0].seconds)} fresh processes each")
    table.add_column("file")
    for heading in ("MB", "seconds", "peak MB", "x the file"):
        table.add_column(heading, justify="right")
    for reading in readings:
        table.add_row(
            FORMS[reading.form],
            f"{reading.file_mb:.0f}",
            f"{spread_of(reading.seconds)}",
            f"{max(reading.peak_mb):.0f}" if reading.peak_mb else "?",
            f"{reading.peak_ratio:.2f}" if reading.peak_ratio is not None else "?",
        )
    table.caption = "\n".join(
        f"{'PASS' if reading.passed else 'FAIL'}  {FORMS[reading.form]}: under {TIME_BAR_S:g} s (median) and under "
        f"{MEMORY_BAR:g} times the file (worst)"
        for reading in readings
    )
    table.caption_justify = "left"
    return table


def _in_fresh_process(path: Path) -> tuple[float, float | None, str]:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_read, args=(theirs, path), daemon=True)
    process.start()
    theirs.close()
    try:
        if not ours.poll(_ANSWER_TIMEOUT_S):
            raise BackendError(f"reading gave no answer for {_ANSWER_TIMEOUT_S:.0f} s")
        answer = ours.recv()
    except (EOFError, OSError) as error:
        raise BackendError("the process that reads died; what it said is on stderr") from error
    finally:
        ours.close()
        process.terminate()  # it has answered, or never will
        process.join()
    if isinstance(answer, FuselineError):
        raise answer
    seconds, peak_mb, digest = answer
    return seconds, peak_mb, digest


def _read(connection: Connection, path: Path) -> None:
    from fuseline.export.checkpoint.checkpoint import read_checkpoint
    from fuseline.export.recognition.architectures import recognise

    before_mb = _memory_mb()
    started = time.perf_counter()
    try:
        checkpoint = read_checkpoint(path)
        recognised = recognise(checkpoint.tensors)
    except FuselineError as error:
        connection.send(error)
        return
    seconds = time.perf_counter() - started
    peak_mb = peak_memory_mb(os.getpid())
    used_mb = None if peak_mb is None or before_mb is None else peak_mb - before_mb
    del recognised
    connection.send((seconds, used_mb, _digest(checkpoint.tensors)))


def _memory_mb() -> float | None:
    """Resident set of this process now in MB (10^6 bytes); None where it can't be read."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except OSError:
        return None
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def _digest(weights: Mapping[str, Any]) -> str:
    """Digest of all tensors in the order of their names, but of the counters, which reading leaves out."""
    digest = hashlib.sha256()
    for name in sorted(name for name in weights if not name.endswith("num_batches_tracked")):
        digest.update(name.encode())
        digest.update(weights[name].contiguous().numpy())
    return digest.hexdigest()
