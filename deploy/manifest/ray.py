"""A package as the Serve config of a Ray cluster."""

from fuseline.deploy.manifest.kubernetes import Deployed
from fuseline.deploy.manifest.kustomization import Document
from fuseline.deploy.manifest.quantities import bytes_of
from fuseline.deploy.ray.serve_config import serve_config


def ray_config(deployed: Deployed, package: str, name: str) -> Document:
    """Return what `serve deploy` reads: the package at the path `package` of every node, served as `name`."""
    replicas, sizes = deployed.replicas, deployed.sizes
    return serve_config(
        package,
        name=name,
        min_replicas=replicas.least,
        max_replicas=replicas.most if replicas.scales else None,
        cpus=float(sizes.cpus),
        gpus=0.0 if deployed.gpu is None else 1.0,
        memory_bytes=bytes_of(sizes.memory),
    )
