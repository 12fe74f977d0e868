"""From what was measured to what a replica asks for."""

import math
from dataclasses import dataclass

from fuseline.deploy.manifest.measurement import Measurement
from fuseline.deploy.manifest.quantities import memory_quantity

TAKEN_SHARE = 0.8
"""Share of its limit that a server fills in the worst case that was foreseen. Two bursts don't take the same, as it
depends on what is in memory at one moment: 541 and 610 MiB were measured of one package. From nine tenths on a server
gives up while it starts (`serve.process.memory_guard`)."""

TARGET_WAIT_S = 0.1
"""Time for which rows that wait when an autoscaler should add a replica have yet to wait."""

START_FACTOR = 10
"""How many times longer than measured a start may take: a busy node, a cold disk, a slower CPU."""
PROBE_PERIOD_S = 2


@dataclass(frozen=True, slots=True)
class Sizes:
    """Figures of one replica."""

    cpus: int
    """CPUs that are asked for, and threads that use them."""
    memory: str
    """Memory that is asked for and that is the limit: a pod above what it asked for is evicted first."""
    startup_failures: int
    """Startup probes that may fail, one every `PROBE_PERIOD_S`; where the YAML allows more, that holds."""
    queued_rows: int
    """Rows waiting in a replica, on average, beyond which there should be more replicas."""


def sizes_from(measured: Measurement) -> Sizes:
    """Return the figures of a replica on a machine like the one that was measured.

    Memory is the peak under a load and a burst, and a full queue on top of it, which only callers that wait for long
    fill.
    """
    needed_bytes = measured.peak_bytes + measured.max_queue_rows * measured.row_bytes
    return Sizes(
        cpus=measured.cpus,
        memory=memory_quantity(needed_bytes / TAKEN_SHARE),
        startup_failures=math.ceil(START_FACTOR * measured.start_s / PROBE_PERIOD_S),
        queued_rows=max(1, round(measured.images_per_s * TARGET_WAIT_S)),
    )
