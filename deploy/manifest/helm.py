"""A package as values of the chart `fuseline`."""

from pathlib import Path

from fuseline.deploy.manifest.kubernetes import FOLDER as KUBERNETES
from fuseline.deploy.manifest.kubernetes import Deployed
from fuseline.deploy.manifest.kustomization import Document, merged, read_one

FOLDER = Path(__file__).parents[1] / "helm" / "fuseline"


def helm_values(deployed: Deployed) -> Document:
    """Return the chart's values with the package's image and figures."""
    own, sizes = read_one(FOLDER / "values.yaml"), deployed.sizes
    failures = own["startupFailures"]
    if deployed.gpu is not None:
        (container,) = read_one(KUBERNETES / "overlays/gpu/deployment.yaml")["spec"]["template"]["spec"]["containers"]
        failures = container["startupProbe"]["failureThreshold"]
    image = {"repository": deployed.image.name, "tag": deployed.image.tag, "digest": deployed.image.digest}
    autoscaling: Document = {"queuedRows": sizes.queued_rows}
    if deployed.replicas.scales:
        autoscaling |= {"kind": deployed.autoscaler}
        autoscaling |= {"minReplicas": deployed.replicas.least, "maxReplicas": deployed.replicas.most}
    values: Document = merged(
        own,
        {
            "image": image,
            "replicas": deployed.replicas.least,
            "autoscaling": autoscaling,
            "serviceMonitor": deployed.monitor,
            "cpus": sizes.cpus,
            "memory": sizes.memory,
            "gpu": deployed.gpu or "",
            "startupFailures": max(failures, sizes.startup_failures),
        },
    )
    return values
