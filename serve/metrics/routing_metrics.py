"""Metrics of aliases and shadows. They are counters and histograms only, which sum up over several processes."""

from collections.abc import Sequence

from prometheus_client import CollectorRegistry

from fuseline.serve.metrics.fast_metrics import Counter, CounterChild, Histogram

OUTCOMES = ("agrees", "differs", "failed", "dropped", "unfit")
"""What becomes of a request that a shadow was to compute: compared, for all its images or not for all; the shadow
failed on it; there was no room or no time for it; or the shadow can't take it."""

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_DIFFERENCES = tuple(float(f"{step}e{exponent}") for exponent in range(-6, 3) for step in (1, 3))


class AliasMetrics:
    """Counters of the requests that asked for aliases. Labels hold served names only, never a client's words."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._requests = Counter(
            "fuseline_alias_requests",
            "Requests that asked for an alias, by the model that they were given to.",
            ["alias", "model", "version"],
            registry=registry,
        )
        self._missing = Counter(
            "fuseline_alias_missing_target",
            "Requests that asked for an alias while this target of it was not served.",
            ["alias", "target"],
            registry=registry,
        )

    def requests(self, alias: str, model: str, version: str) -> CounterChild:
        """Return the counter of the requests to `alias` that this model was given."""
        return self._requests.labels(alias, model, version)

    def missing(self, alias: str, target: str) -> CounterChild:
        """Return the counter of the requests to `alias` that came while `target` was not served."""
        return self._missing.labels(alias, target)


class ShadowMetrics:
    """Counters and histograms of what shadows computed; the label `shadowed` is the name that requests asked for."""

    def __init__(self, registry: CollectorRegistry) -> None:
        labels = ["shadowed", "model", "version"]
        self._requests = Counter(
            "fuseline_shadow_requests",
            "Requests that a shadow was to compute too, by what became of that.",
            [*labels, "outcome"],
            registry=registry,
        )
        self._images = Counter(
            "fuseline_shadow_images",
            "Images that a shadow computed too, by whether it agreed.",
            [*labels, "outcome"],
            registry=registry,
        )
        self._difference = Histogram(
            "fuseline_shadow_logit_difference",
            "Largest difference of any logit of a request between the shadow and the answer.",
            labels,
            bounds=_DIFFERENCES,
            registry=registry,
        )
        self._seconds = Histogram(
            "fuseline_shadow_seconds",
            "Queueing and computing of the same requests, by the shadow and by the model that answered.",
            [*labels, "by"],
            bounds=_SECONDS,
            registry=registry,
        )

    def count_outcome(self, labels: Sequence[str], outcome: str) -> None:
        """Count one request; `labels` are the shadowed name, and the shadow's name and version."""
        self._requests.labels(*labels, outcome).add()

    def count_comparison(
        self,
        labels: Sequence[str],
        *,
        agreeing: int,
        differing: int,
        difference: float,
        seconds: float,
        answer_s: float,
    ) -> None:
        """Count the images of one request that was compared, its largest difference of logits, and both times."""
        self._images.labels(*labels, "agrees").add(agreeing)
        self._images.labels(*labels, "differs").add(differing)
        self._difference.labels(*labels).observe(difference)
        self._seconds.labels(*labels, "shadow").observe(seconds)
        self._seconds.labels(*labels, "answer").observe(answer_s)
