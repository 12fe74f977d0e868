"""From real images to a measured gRPC service, with the commands that a user types.

Trains a ResNet on scikit-learn's digits, exports it, serves it, classifies the held-out digits through gRPC, and prints
one table. Exits with 1 if the accuracy is below 97 %, or if the service answers one image otherwise than eager PyTorch.
A second run reuses the trained checkpoint. Everything is written under build/demo/.

While the server runs, it shows a browser its page at the address that is printed. With --keep it runs on after the
table, until Ctrl-C or SIGTERM.
"""

import argparse
import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from checkpoints import load_checkpoint
from contenders import BATCH_ROWS, LARGE_REQUESTS_UNDER_WAY, eager_contender, onnx_contender, service_contenders
from data import LabelledImages, load_data
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table
from server_process import RunningServer, running_server
from timing import Contender, busy_cores, time_in_turns
from train import Recipe

from fuseline import Client
from fuseline.benchmarks.harness.machine import describe, machine_facts
from fuseline.benchmarks.harness.server_process import free_ports
from fuseline.benchmarks.harness.stats import spread_of
from fuseline.serve.errors import FuselineError

RECIPE = Recipe(model="resnet18-cifar", data="digits", width=16, epochs=15)
LEAST_ACCURACY = 0.97
CONCURRENCY = 32
ROUNDS = 5
STRETCH_S = 1.0
BUSY_CORES = 0.2
"""More than so many used by other processes are worth a warning beside the figures."""

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "build" / "demo"
CHECKPOINT = FOLDER / "digits.pt"
HELD_OUT = FOLDER / "held-out"
PACKAGE = FOLDER / "digits"

DRAINED = "the server drained on SIGTERM and ended with exit code 0"
CAPTION = (
    f"Medians of {ROUNDS} rounds in turns of {STRETCH_S:g} s. PyTorch and ONNX Runtime run in this process and are fed "
    f"decoded pixels, {BATCH_ROWS} images at a time for images/s. The service is fed PNG files, one a request with "
    f"{CONCURRENCY} requests under way, then {BATCH_ROWS} a request with {LARGE_REQUESTS_UNDER_WAY} under way. Its "
    "figures include PNG decoding, gRPC and the Python client on the same cores, which cost more than so small a "
    "network does."
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo and return its exit code."""
    parser = argparse.ArgumentParser(description="Train on real digits, export, serve, classify, and print one table.")
    parser.add_argument("--keep", action="store_true", help="serve on after the table, until Ctrl-C or SIGTERM")
    keep = parser.parse_args(arguments).keep
    console = Console(highlight=False)
    with ExitStack() as serving:
        code, server = show(console, serving, keep)
        if server is not None:
            keep_serving(server)
            serving.close()
            print(DRAINED)
    return code


def show(console: Console, serving: ExitStack, keep: bool) -> tuple[int, RunningServer | None]:
    """Do all that the demo shows; return its exit code and, to `keep`, the server, which `serving` ends."""
    started = time.monotonic()
    FOLDER.mkdir(parents=True, exist_ok=True)
    data = load_data(RECIPE.data)

    console.rule(f"1. Train {RECIPE.model} on {len(data.train_images)} handwritten digits", align="left")
    train()
    console.rule(f"2. Write the {len(data.held_out_images)} held-out digits as PNG files", align="left")
    pngs = write_pngs(data, HELD_OUT)
    console.rule("3. Export, verifying every artifact against PyTorch on the held-out digits", align="left")
    run(script("export"), "--fp16", CHECKPOINT, "--images", HELD_OUT, "--force", "--out", PACKAGE)
    console.rule("4. Serve", align="left")
    # In FP32 whatever the CPU has: every answer is to be eager PyTorch's.
    # An HTTP port of 0 would mean no HTTP at all.
    ports = ("--port", 0, "--http-port", *free_ports(1))
    command = announced(script("fuseline"), "serve", PACKAGE, "--precision", "fp32", *ports)
    server = serving.enter_context(running_server(command, ROOT, FOLDER / "server.log"))
    with Client(server.address) as client:
        served = client.model()
        print(f"ready on {server.address}: {served.backend}, {served.precision}; {served.backend_reason}")
        tell_page(server)
        with ThreadPoolExecutor(CONCURRENCY) as pool:
            contenders = [
                eager_contender(CHECKPOINT, data),
                onnx_contender(PACKAGE, data),
                *service_contenders(client, pngs, pool),
            ]
            console.rule(f"5. Classify all {len(pngs)} each way, then time each way", align="left")
            top1 = {each.name: each.classify_many(range(len(pngs))) for each in contenders}
            eager_top1 = top1[contenders[0].name]
            others_cores = busy_cores(sample_s=1.0)
            if all(np.array_equal(answers, eager_top1) for answers in top1.values()):
                measure(contenders, eager_top1, console)
    if not keep:
        serving.close()
        print(DRAINED)

    truth = data.held_out_classes.numpy()
    rows = [row_of(each, top1[each.name], eager_top1, truth) for each in contenders]
    facts = machine_facts()
    result = {
        "images": len(pngs),
        "served": {"backend": served.backend, "precision": served.precision, "reason": served.backend_reason},
        "contenders": rows,
        "machine": facts,
        "cores_busy_with_other_work": others_cores,
        "wall_s": round(time.monotonic() - started, 1),
    }
    (FOLDER / "result.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    console.print(table_of(rows))
    console.print(f"[dim]{CAPTION}\n{describe(facts)}[/]")
    if others_cores is not None and others_cores > BUSY_CORES:
        console.print(
            f"[yellow]Other work kept {others_cores:.1f} cores busy just before the timing: the figures are lower than "
            "the machine's own, PyTorch's by most, as its threads wait by spinning.[/]"
        )
    return verdict(rows, result["wall_s"]), server if keep else None


def tell_page(server: RunningServer) -> None:
    """Print where a browser sees the server at work, if it shows that."""
    if page := server.page():
        print(f"watch it: {page}", flush=True)


def keep_serving(server: RunningServer) -> None:
    """Return at Ctrl-C or SIGTERM, or when the server has ended by itself."""
    # A shell has what it starts in the background ignore SIGINT.
    before = {each: signal.signal(each, signal.default_int_handler) for each in (signal.SIGINT, signal.SIGTERM)}
    try:
        with suppress(KeyboardInterrupt):
            print(f"serving on {server.address} until Ctrl-C", flush=True)
            tell_page(server)
            server.wait()
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def train() -> None:
    """Make `CHECKPOINT` by `RECIPE` with train.py, which finishes or reuses what an earlier run left."""
    command: list[object] = [Path(sys.executable), ROOT / "examples" / "train.py"]
    command += ["--model", RECIPE.model, "--width", RECIPE.width, "--data", RECIPE.data, "--epochs", RECIPE.epochs]
    run(*command, "-o", CHECKPOINT, *(["--restart"] if CHECKPOINT.exists() and not is_of_recipe(CHECKPOINT) else []))


def is_of_recipe(path: Path) -> bool:
    """Whether `path` is a checkpoint, finished or not, of `RECIPE`."""
    try:
        return bool(load_checkpoint(path)["recipe"] == asdict(RECIPE))
    except ValueError:
        return False


def write_pngs(data: LabelledImages, folder: Path) -> list[bytes]:
    """Write the held-out images into `folder`/<label>/, replacing it; return the files' bytes, in order."""
    shutil.rmtree(folder, ignore_errors=True)
    pngs = []
    for position, (pixels, label) in enumerate(zip(data.held_out_images, data.held_out_classes, strict=True)):
        path = folder / data.labels[int(label)] / f"{position:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(path)
        pngs.append(path.read_bytes())
    return pngs


def measure(contenders: Sequence[Contender], expected: NDArray[np.int64], console: Console) -> None:
    """Time the contenders in turns, with a bar on a terminal."""
    stretches = ROUNDS * sum(1 if contender.classify_one is None else 2 for contender in contenders)
    with _bar(console, total=stretches) as advance:
        time_in_turns(contenders, expected, rounds=ROUNDS, stretch_s=STRETCH_S, on_stretch_done=advance)


def row_of(
    contender: Contender, top1: NDArray[np.int64], eager_top1: NDArray[np.int64], truth: NDArray[np.int64]
) -> dict[str, Any]:
    """What the table and result.json say of one contender; figures are None if it was not timed."""
    return {
        "name": contender.name,
        "accuracy": float((top1 == truth).mean()),
        "right": int((top1 == truth).sum()),
        "same_as_eager": int((top1 == eager_top1).sum()),
        "images": len(truth),
        "latency_ms": asdict(spread_of(contender.latencies_ms)) if contender.latencies_ms else None,
        "images_per_s": asdict(spread_of(contender.images_per_s)) if contender.images_per_s else None,
    }


def table_of(rows: Sequence[dict[str, Any]]) -> Table:
    """The table that the demo is for."""
    table = Table(title=f"{rows[0]['images']} held-out digits")
    table.add_column("", no_wrap=True)
    for heading in ("accuracy", "top-1 as eager", "latency", "images/s"):
        table.add_column(heading, justify="right")
    for row in rows:
        latency, throughput = row["latency_ms"], row["images_per_s"]
        table.add_row(
            row["name"],
            f"{row['accuracy']:.2%}",
            f"{row['same_as_eager']} of {row['images']}",
            f"{latency['median']:.2f} ms" if latency else "-",
            f"{throughput['median']:,.0f}" if throughput else "-",
        )
    return table


def verdict(rows: Sequence[dict[str, Any]], wall_s: float) -> int:
    """Say whether the demo held what it promises, and return the exit code."""
    failures = [
        f"{row['name']} answers {row['images'] - row['same_as_eager']} images otherwise than eager PyTorch"
        for row in rows
        if row["same_as_eager"] != row["images"]
    ]
    failures += [
        f"{row['name']} is right on {row['accuracy']:.2%} of the held-out digits, {LEAST_ACCURACY:.0%} were expected"
        for row in rows
        if row["accuracy"] < LEAST_ACCURACY
    ]
    for failure in failures:
        print(f"FAILED: {failure}", file=sys.stderr)
    if not failures:
        print(f"done in {wall_s:.0f} s; the figures are in {shown(FOLDER / 'result.json')}")
    return 1 if failures else 0


def run(*command: object) -> None:
    """Run a command, shown as typed; its failure ends the demo with its exit code."""
    code = subprocess.run(announced(*command), cwd=ROOT, check=False).returncode  # noqa: S603
    if code != 0:
        sys.exit(code)


def announced(*command: object) -> list[str]:
    """Print a command as a user types it in the project's folder, and return it, to be run there."""
    words = [shown(part) if isinstance(part, Path) else str(part) for part in command]
    print("$", *words, flush=True)
    return words


def script(name: str) -> Path:
    """The command `name` of this Python's environment."""
    return Path(sys.executable).with_name(name)


def shown(path: Path) -> str:
    """`path` as it is typed in the project's folder."""
    return str(path.relative_to(ROOT) if path.is_relative_to(ROOT) else path)


@contextmanager
def _bar(console: Console, total: int) -> Iterator[Callable[[], None]]:
    if not console.is_terminal:
        yield lambda: None
        return
    with Progress(TextColumn("timing"), BarColumn(), console=console, transient=True) as bar:
        task = bar.add_task("timing", total=total)
        yield lambda: bar.advance(task)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (RuntimeError, FuselineError) as error:
        sys.exit(f"FAILED: {error}")
    except KeyboardInterrupt:
        print("interrupted; `make demo` goes on from the last trained epoch", file=sys.stderr)
        sys.exit(130)
