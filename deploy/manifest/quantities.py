"""Kubernetes' quantities: https://kubernetes.io/docs/reference/kubernetes-api/common-definitions/quantity."""

import math

MIB = 2**20
STEP_BYTES = 64 * MIB
"""Memory is rounded up to whole steps of this."""


def memory_quantity(size_bytes: float) -> str:
    """Return at least `size_bytes`, in MiB, rounded up to a whole step."""
    return f"{max(1, math.ceil(size_bytes / STEP_BYTES)) * STEP_BYTES // MIB}Mi"


def bytes_of(quantity: str) -> int:
    """Return the bytes of a quantity that `memory_quantity` wrote, or one in Gi."""
    number, unit = quantity[:-2], quantity[-2:]
    return int(number) * {"Mi": MIB, "Gi": 1024 * MIB}[unit]
