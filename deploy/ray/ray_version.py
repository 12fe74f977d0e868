"""Whether the Ray that is installed is one that Fuseline works with."""

import re
from importlib.metadata import PackageNotFoundError, version

from fuseline.serve.errors import BackendUnavailableError

OLDEST = (2, 60)
"""Oldest version of Ray that has all that is used: policies that are classes, custom statistics of replicas, streams
over gRPC in both directions, and updates that start a replica before another stops."""


def check_ray() -> None:
    """Raise `BackendUnavailableError` if Ray is missing, or older than `OLDEST`."""
    oldest = ".".join(map(str, OLDEST))
    install = "install it on every node by pip install 'fuseline[ray]'"
    try:
        found = version("ray")
    except PackageNotFoundError:
        raise BackendUnavailableError(
            f"Ray is not installed here, and this application runs on Ray {oldest} or later; {install}"
        ) from None
    if _numbers(found) < OLDEST:
        raise BackendUnavailableError(
            f"Ray {found} is installed here, and this application needs {oldest} or later; {install}"
        )


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", text)[:2])
