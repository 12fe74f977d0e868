"""How long a pod may take to end, by what a server's end is made of.

deletion ──▶ preStop, in which the server serves on while the pod leaves Services and DNS
         ──▶ SIGTERM: health is NOT_SERVING, what was admitted is answered (at most --drain-timeout-s), what comes
             is refused as UNAVAILABLE, and connections take their last answers
         ──▶ terminationGracePeriodSeconds after the deletion: SIGKILL
"""

import math

PRE_STOP_S = 10
"""Seconds from the deletion of a pod until no new connection comes. By then its EndpointSlice says that it is not ready
(within a second or two), nodes have it from there (1 s, kube-proxy's `minSyncPeriod`), and names that were resolved
before have gone stale (5 s, the `ttl` of CoreDNS' plugin kubernetes)."""

END_S = 10
"""Seconds from the drain's end to the process's: refusing stragglers, the last answers, traces, the interpreter."""


def grace_period_s(drain_timeout_s: float) -> int:
    """Return `terminationGracePeriodSeconds` for a server with that `--drain-timeout-s`."""
    return PRE_STOP_S + math.ceil(drain_timeout_s) + END_S
