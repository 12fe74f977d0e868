"""A measurement and what is made of it, without anything being measured."""

from typing import Any

from fuseline.deploy.manifest.kubernetes import Deployed
from fuseline.deploy.manifest.measurement import Measurement
from fuseline.deploy.manifest.names import Image, Replicas
from fuseline.deploy.manifest.sizing import Sizes

FACTS: dict[str, Any] = {
    "package": "resnet18",
    "version": "1",
    "manifest_sha256": "0" * 64,
    "fuseline": "0.1.0",
    "measured_at": "2026-11-27T22:00:00Z",
    "cpu": "AMD EPYC",
    "cpus": 2,
    "backend": "openvino",
    "device": "CPU",
    "precision": "fp32",
    "start_s": 3.5,
    "ready_bytes": 400 * 2**20,
    "peak_bytes": 480 * 2**20,
    "row_bytes": 224 * 224 * 3,
    "max_queue_rows": 1024,
    "burst_images": 1536,
    "picture_bytes": 90_000,
    "load_s": 5.0,
    "images": 1000,
    "refused": 0,
    "batches": 300,
    "batch_ms": 25.0,
    "batch_rows": 3.3,
}

CPU = Deployed("resnet18", Image("fuseline-resnet18", "1", ""), Replicas(2, 2), Sizes(2, "1152Mi", 18, 20))
"""What `deploy/kubernetes/overlays/cpu` has."""
GPU = Deployed(
    "resnet18",
    Image("fuseline-resnet18", "1-gpu", ""),
    Replicas(2, 2),
    Sizes(4, "8192Mi", 18, 20),
    gpu="nvidia.com/gpu",
)
"""What `deploy/kubernetes/overlays/gpu` has."""


def measured(**changes: Any) -> Measurement:
    return Measurement.model_validate(FACTS | changes)
