"""`python -m fuseline.benchmarks.fast_decode PACKAGE FOLDER`: what `--fast-decode` gains and changes on JPEGs."""

import time
from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from fuseline.benchmarks.harness.stats import pair_ratios, spread_of
from fuseline.serve.backends import open_backend
from fuseline.serve.command_line import run_command_line
from fuseline.serve.errors import InputError
from fuseline.serve.images import decode_for
from fuseline.serve.input_rows import row_maker
from fuseline.serve.model_package import load_package

_SUFFIXES = (".jpg", ".jpeg")


def main(
    package: Annotated[Path, typer.Argument(metavar="PACKAGE", help="Whose preprocessing and FP32 graph are used.")],
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Searched through for JPEGs.")],
    repeats: Annotated[int, typer.Option(min=1, max=1000, help="How often each picture is decoded each way.")] = 5,
) -> None:
    """Compare scaled with full decoding: time, pixels, and the class that the model answers."""
    model = load_package(package)
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in _SUFFIXES)
    if not files:
        raise InputError(f"there is no JPEG in {folder}; name a folder with some")
    decode, to_rows = partial(decode_for, model.manifest.input), row_maker(model.manifest)
    backend, _ = open_backend(model, backend="auto", precision="fp32", buckets=(1,))
    seconds: dict[bool, list[float]] = {False: [], True: []}
    differences, same = [], 0
    for data in map(Path.read_bytes, files):
        pixels = {fast: decode(data, fast=fast) for fast in seconds}
        for number in range(repeats):
            for fast in (False, True) if number % 2 else (True, False):
                started = time.process_time()
                decode(data, fast=fast)
                seconds[fast].append(time.process_time() - started)
        differences.append(np.abs(pixels[True].astype(float) - pixels[False]).mean())
        classes = [int(backend.infer(to_rows(pixels[fast][np.newaxis])).argmax()) for fast in seconds]
        same += classes[0] == classes[1]
    backend.close()
    full_ms, fast_ms = (spread_of([1e3 * each for each in seconds[fast]]) for fast in (False, True))
    # Pairs are neighbours in time: both ways of one repeat of one picture.
    ratio = spread_of(pair_ratios(seconds[True], seconds[False]))
    spec = model.manifest.input
    print(f"{len(files)} pictures, {model.manifest.name} at {spec.height} x {spec.width}, CPU time: median (quartiles)")
    print(f"full {full_ms} ms, --fast-decode {fast_ms} ms, ratio {ratio:.2f}")
    print(f"mean difference of a pixel {np.mean(differences):.2f} of 255; same class {same} of {len(files)}")


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(main)
    run_command_line(app)
