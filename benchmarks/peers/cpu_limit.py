"""The limit of a server of JPEG files: what all cores could do if only decoding and computing cost CPU time."""

import time
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fuseline.benchmarks.engines.process import EngineProcess
from fuseline.benchmarks.harness.cpu_time import with_cores_used_by
from fuseline.benchmarks.harness.machine import usable_cores
from fuseline.benchmarks.peers.rounds import Stretch
from fuseline.serve.images import decode_for
from fuseline.serve.model_package import InputSpec


def measure_cpu_limit(
    engine: EngineProcess, pixels: NDArray[np.uint8], files: Sequence[bytes], spec: InputSpec, seconds: float
) -> Stretch:
    """Divide the cores by the CPU time that one of `files` takes to decode and one of `pixels` to compute.

    Each is measured alone, one after the other: decoding in this thread for a quarter of `seconds` of CPU time, but
    all files at least once; then the engine for `seconds`, `pixels` (rows, height, width, channels) being one batch.
    """
    decoded, before_s = 0, time.process_time()
    while decoded < len(files) or time.process_time() - before_s < seconds / 4:
        decode_for(spec, files[decoded % len(files)])
        decoded += 1
    decode_s = (time.process_time() - before_s) / decoded
    calls, cores = with_cores_used_by([engine.pid], lambda: engine.measure(pixels, seconds))
    cpu_s = decode_s + cores / calls.images_per_s
    images_per_s = usable_cores() / cpu_s
    return Stretch(images_per_s, images_per_s, None, None, 1e3 * cpu_s, decode_cpu_ms=1e3 * decode_s)
