"""How many replicas are wanted, from what they report: rows that wait, how long one would, and how busy they are."""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any, NamedTuple

_TOLERANCE = 0.1
"""Share of the replicas by which the wanted number may differ from theirs before it is another: what they report is a
sample."""

_MOST_GROWTH = 2.0
"""Factor by which the replicas grow at most for a wait that is too long: by the next look more is known."""


class ReplicaLoad(NamedTuple):
    """What one replica reports, as a mean over the last seconds."""

    queued_rows: float
    """Rows that wait for a batch."""
    wait_s: float
    """Seconds that one which came now would wait, as admission predicts them."""
    busy: float
    """Share of the time in which its lanes computed, from 0 to 1."""
    rows_per_s: float
    """Rows that it computes in a second with full batches; 0: not measured."""


class Target(NamedTuple):
    """What the number of replicas is chosen for."""

    wait_s: float
    busy: float


def wanted_replicas(replicas: int, loads: Sequence[ReplicaLoad], rows_at_proxies: float, target: Target) -> float:
    """Return how many replicas are wanted, where `replicas` are there, of which `loads` has reports.

    Work that comes is shared by as many as keeps each busy for `target.busy` of the time. Rows that wait, here or in
    the proxies, are to be gone in `target.wait_s`, which takes replicas of their own. A predicted wait above that asks
    for as many times the replicas as it is longer, at most for twice as many.
    """
    if not loads:
        return float(replicas)
    # One that has just begun has reported nothing yet, and does its share from now on.
    busy = fmean(load.busy for load in loads) * replicas
    rates = [load.rows_per_s for load in loads if load.rows_per_s > 0]
    waiting = rows_at_proxies + sum(load.queued_rows for load in loads)
    wanted = busy / target.busy
    if rates:
        wanted += waiting / (fmean(rates) * target.wait_s)
    wait_s = max(load.wait_s for load in loads)
    if wait_s > target.wait_s:
        wanted = max(wanted, replicas * min(wait_s / target.wait_s, _MOST_GROWTH))
    return float(replicas) if abs(wanted - replicas) <= _TOLERANCE * replicas else wanted


class QueuedRowsPolicy:
    """Policy of Ray's autoscaler: `wanted_replicas`, of what the replicas' `record_autoscaling_stats` tell.

    Ray bounds the number, and waits for `upscale_delay_s` and `downscale_delay_s`.
    """

    def __init__(self, target_wait_ms: float, target_busy: float) -> None:
        self._target = Target(target_wait_ms / 1000, target_busy)

    def __call__(self, context: Any) -> tuple[float, dict[str, Any]]:
        """Return the number for Ray's `AutoscalingContext`, and no state."""
        loads = loads_of(context.aggregated_metrics or {})
        at_proxies = float(context.total_queued_requests or 0)
        # Without any report Ray's own idea stands, as while the first replica starts.
        replicas = context.current_num_replicas if loads else context.target_num_replicas
        return wanted_replicas(replicas, loads, at_proxies, self._target), {}


def loads_of(metrics: Mapping[str, Mapping[Any, float]]) -> list[ReplicaLoad]:
    """Return the loads in Ray's metrics, which are by name, then by replica; a replica that lacks one is left out."""
    columns = [metrics.get(field, {}) for field in ReplicaLoad._fields]
    whole = [replica for replica in columns[0] if all(replica in column for column in columns)]
    return [ReplicaLoad(*(column[replica] for column in columns)) for replica in whole]
