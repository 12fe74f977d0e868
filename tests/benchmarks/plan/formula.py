"""A server by a formula, so that the search around it can be tried thousands of times: an M/M/1 queue's latencies.

It stands in for `simulate` where a test is about the search and not about the simulation.
"""

from collections.abc import Sequence

import numpy as np

from fuseline.benchmarks.plan.profile import Profile
from fuseline.benchmarks.plan.simulation import Arrivals, Loss, Outcome, ServingOptions


def simulate(
    profile: Profile,
    arrivals: Arrivals,
    *,
    replicas: int = 1,
    options: ServingOptions = ServingOptions(),  # noqa: B008
    deadline_s: float | None = None,
    losses: Sequence[Loss] = (),
    seed: int = 0,
) -> Outcome:
    """Each request's latency is drawn alone: exponential, of a mean that grows with the load of its moment.

    Beyond capacity, what is too much is refused, and the rest waits for as long as the queue lets it.
    """
    random, number = np.random.default_rng(seed), len(arrivals.seconds)
    most = max(bucket.rows for bucket in profile.buckets if bucket.rows <= (options.max_batch or 4096))
    batch_s = next(bucket.median for bucket in profile.buckets if bucket.rows == most)
    here = np.full(number, float(replicas))
    for loss in losses:
        here[arrivals.seconds >= loss.at_s] -= 1
    # By the requests around each: a burst is noticed as one.
    edges = np.clip(np.arange(number)[:, None] + [-number // 20, number // 20 + 1], 0, number - 1)
    rows, times = np.cumsum(arrivals.rows)[edges], arrivals.seconds[edges]
    with np.errstate(divide="ignore", invalid="ignore"):
        load = (rows[:, 1] - rows[:, 0]) / (times[:, 1] - times[:, 0]) * batch_s / most / here
    latency = batch_s * random.exponential(1.0, number) / np.maximum(1 - load, 1e-9)
    refused = (random.random(number) > 1 / np.maximum(load, 1.0)) | (here <= 0)
    longest = min(options.max_queue_ms / 1000, options.max_queue_rows * batch_s / most) + batch_s
    latency = np.where(refused, np.nan, np.minimum(latency, longest))
    late = latency > (np.inf if deadline_s is None else deadline_s)
    return Outcome(
        latency_s=np.where(late, np.nan, latency),
        refused=refused,
        late=late,
        replica=np.zeros(number, np.int16),
        busy_share=np.full(replicas, min(1.0, float(np.mean(load)))),
        batches=np.full(replicas, 10, np.int64),
        batch_rows=np.full(replicas, float(most)),
        seconds=float(arrivals.seconds[-1]),
    )
