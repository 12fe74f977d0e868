"""Write the profiles of docs/planning.md's "on paper" from figures that were measured on an H100, and on two cores.

    python examples/paper_profiles.py
    python examples/paper_profiles.py --front-ends    # what front ends take for a million pictures a second

Nothing here was measured as `fuseline plan` measures; docs/planning.md says what each figure stands for.
"""

import json
import statistics
import sys
from datetime import date
from pathlib import Path
from typing import Any

from fuseline.benchmarks.plan.profile import BucketSeconds, FrontEnd, Profile, save_profile

RESULTS = Path(__file__).parent.parent / "benchmarks" / "results"
PROFILES = Path(__file__).parent / "profiles"
RAW_MB = 224 * 224 * 3 / 1e6
JPEG_MB = 0.096
"""As benchmarks/README.md has it of the case jpeg: 500 x 375, quality 90."""
NETWORK_SECONDS = 0.001
"""A guess, of a request's way through a data centre's network and back."""
BATCHES = (8, 32)
"""Batches that were measured, up to 32, the largest of a server that isn't told otherwise."""


def paper_profiles() -> dict[str, Profile]:
    """Return a profile for each way in which pictures may come, by its file's name."""
    gpu, peers, workers = (_read(name) for name in ("gpu-run-h100", "peers", "worker-ceiling"))
    bare = _figures(gpu, "serving", "bare onnxruntime fp16, batch 32, at the start")["images/s"]
    unary = _figures(gpu, "serving", "--workers 8: Classify, 1 image, 256 callers")
    stream = _figures(gpu, "serving", "--workers 8: ClassifyStream, 1 image, 256 callers")
    sixteen = _figures(gpu, "serving", "--workers 8: Classify, 16 images, 16 callers")
    ready = _figures(gpu, "serving", "--workers 8: ready")["s"]
    batches = {
        rows: rows / _figures(gpu, "engines", f"resnet50, batch {rows}: ONNX Runtime FP16")["images/s, host"]
        for rows in BATCHES
    }
    # Of one picture of 151 KB, and of each of 16 pictures: what the process that computes does beside computing.
    loop = {
        images: next(
            point["backend_cpu_ms"]["median"] / 1000
            for point in workers["points"]
            if point["case"] == case and point["workers"] == 2
        )
        for images, case in ((1, "151 KB"), (16, "3 KB x 16"))
    }
    decode_ms = statistics.median(
        stretch["decode_cpu_ms"]
        for case in peers["cases"]
        if case["name"] == "jpeg"
        for stretch in case["stretches"]["fuseline-cpu-limit"]
    )

    def profile(figures: dict[str, Any], images: int, megabytes: float, more_ms: float = 0.0) -> Profile:
        served = figures["images/s"] / bare
        return Profile(
            model="resnet50",
            machine="on paper: an H100 80GB HBM3 and 16 cores, of benchmarks/results/gpu-run-h100.json",
            backend="onnxruntime",
            precision="fp16",
            device="GPU",
            measured=date.fromisoformat(gpu["started_utc"][:10]),
            lanes=1,
            cores=gpu["machine"]["usable_cores"],
            buckets=tuple(
                BucketSeconds(rows=rows, seconds=(round(seconds / served, 7),)) for rows, seconds in batches.items()
            ),
            front_end=FrontEnd(
                loop_seconds=round(images * loop[images], 8),
                cpu_seconds=round(images * (figures["server CPU ms an image"] + more_ms) / 1000, 8),
                request_mb=round(megabytes, 6),
                transport_seconds=NETWORK_SECONDS,
            ),
            # docs/speed.md: ResNet-50 on OpenVINO, as nothing was measured on the H100.
            memory_bytes=614_000_000,
            start_seconds=round(ready, 2),
        )

    return {
        "resnet50-h100-raw": profile(unary, 1, RAW_MB),
        "resnet50-h100-raw-stream": profile(stream, 1, RAW_MB),
        "resnet50-h100-raw-16": profile(sixteen, 16, RAW_MB),
        "resnet50-h100-jpeg": profile(unary, 1, JPEG_MB, decode_ms),
    }


def _read(name: str) -> dict[str, Any]:
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def _figures(result: dict[str, Any], step: str, what: str) -> dict[str, Any]:
    return next(
        row["figures"]
        for each in result["steps"]
        if each["name"] == step
        for row in each["rows"]
        if row["what"] == what
    )


def front_ends() -> list[tuple[str, float, float]]:
    """Return each way in, its CPU in ms a picture on two cores of an AMD EPYC, and its MB a picture on the network."""
    cases = {case["name"]: case for name in ("peers", "peers-memory-rest") for case in _read(name)["cases"]}

    def cpu_ms(case: str, contender: str, images: int = 1) -> float:
        stretches = cases[case]["stretches"][contender]
        return statistics.median(stretch["server_cpu_ms_per_request"] for stretch in stretches) / images

    decode = statistics.median(s["decode_cpu_ms"] for s in cases["jpeg"]["stretches"]["fuseline-cpu-limit"])
    small_mb = 32 * 32 * 3 / 1e6
    return [
        ("gRPC, a picture of 3 KB a request", cpu_ms("unary", "fuseline"), small_mb),
        ("gRPC, 3 KB on a stream", cpu_ms("stream", "fuseline"), small_mb),
        ("gRPC, 16 pictures of 3 KB a request", cpu_ms("images", "fuseline", 16), small_mb),
        ("REST with binary tensors, 3 KB", cpu_ms("rest", "fuseline-rest"), small_mb),
        ("gRPC, a picture of 150 KB a request", cpu_ms("unary-224", "fuseline"), RAW_MB),
        ("shared memory, 150 KB", cpu_ms("shared-memory", "fuseline-shared-memory"), 0.0),
        ("shared memory, 16 of 150 KB a request", cpu_ms("images-shared-memory", "fuseline-shared-memory", 16), 0.0),
        ("gRPC, a JPEG of 96 KB, its decoding alone", decode, JPEG_MB),
    ]


def print_front_ends() -> None:
    """Print them as a table for Markdown."""
    print("| way in | CPU ms a picture | cores for 1,000,000/s | Gbit/s |")
    print("|---|---|---|---|")
    for way, milliseconds, megabytes in front_ends():
        print(f"| {way} | {milliseconds:.3f} | {1000 * milliseconds:,.0f} | {8000 * megabytes:,.0f} |")


if __name__ == "__main__":
    if sys.argv[1:] == ["--front-ends"]:
        print_front_ends()
        sys.exit()
    PROFILES.mkdir(exist_ok=True)
    for name, made in paper_profiles().items():
        save_profile(PROFILES / f"{name}.json", made)
        print(f"written: {PROFILES.name}/{name}.json")
