"""A package as a Deployment and what belongs to it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fuseline.deploy.manifest.grace import grace_period_s
from fuseline.deploy.manifest.kustomization import Document, Kustomization, build, identity, read_one
from fuseline.deploy.manifest.names import Image, Replicas
from fuseline.deploy.manifest.sizing import Sizes

FOLDER = Path(__file__).parents[1] / "kubernetes"

Autoscaler = Literal["hpa", "keda"]
AUTOSCALERS: tuple[Autoscaler, ...] = ("hpa", "keda")

DRAIN_TIMEOUT_S = 30.0
"""`--drain-timeout-s` of a replica: the server's default."""

_NAME = "fuseline"
_IMAGE = "fuseline-model"


@dataclass(frozen=True, slots=True)
class Deployed:
    """A package on a cluster."""

    instance: str
    """What names of objects begin with."""
    image: Image
    replicas: Replicas
    sizes: Sizes
    gpu: str | None = None
    """Resource of one GPU; None: a replica has none."""
    autoscaler: Autoscaler = "hpa"
    """What changes the number of replicas, if that changes."""
    monitor: bool = False
    """Whether the Prometheus operator is told to read the metrics."""

    @property
    def name(self) -> str:
        """Name of the Deployment and the Service."""
        return f"{self.instance}-{_NAME}"

    @property
    def components(self) -> Sequence[str]:
        """Names of the components that it takes."""
        scaling = [self.autoscaler] if self.replicas.scales else []
        return [*scaling, *(["service-monitor"] if self.monitor else [])]


def kubernetes_documents(deployed: Deployed) -> list[Document]:
    """Return the documents of a package: those of the overlay for its kind of device, with its names and figures."""
    overlay = Kustomization.read(FOLDER / "overlays" / ("cpu" if deployed.gpu is None else "gpu"))
    (labels,) = overlay.fields["labels"]
    image = {
        "name": _IMAGE,
        "newName": deployed.image.name,
        "newTag": deployed.image.tag,
        "digest": deployed.image.digest,
    }
    components = [FOLDER / "components" / name for name in deployed.components]
    changes = {
        "namePrefix": f"{deployed.instance}-",
        "labels": [labels | {"pairs": {"app.kubernetes.io/instance": deployed.instance}}],
        "images": [image],
        "components": components,
    }
    patches = [_deployment_patch(deployed, overlay.folder)]
    if deployed.replicas.scales:
        patches.append(_scaling_patch(deployed))
    documents = build(overlay.changed(changes, patches))
    (container,) = find(documents, "Deployment", deployed.name)["spec"]["template"]["spec"]["containers"]
    probe = container["startupProbe"]
    probe["failureThreshold"] = max(probe["failureThreshold"], deployed.sizes.startup_failures)
    return documents


def _deployment_patch(deployed: Deployed, overlay: Path) -> Document:
    """Return the figures, in the places where the overlay's own patch has such."""
    sizes = deployed.sizes
    (own,) = read_one(overlay / "deployment.yaml")["spec"]["template"]["spec"]["containers"]
    limits: Document = {"memory": sizes.memory}
    container: Document = {
        "name": _NAME,
        "env": [{"name": variable["name"], "value": str(sizes.cpus)} for variable in own["env"]],
        "resources": {"requests": {"cpu": str(sizes.cpus), "memory": sizes.memory}, "limits": limits},
    }
    pod: Document = {
        "terminationGracePeriodSeconds": grace_period_s(DRAIN_TIMEOUT_S),
        "containers": [container],
    }
    if deployed.gpu is not None:
        # One GPU's name takes another's place.
        limits |= dict.fromkeys(own["resources"]["limits"].keys() - limits.keys()) | {deployed.gpu: "1"}
    spec: Document = {"template": {"spec": pod}}
    if not deployed.replicas.scales:
        spec["replicas"] = deployed.replicas.least
    return {"kind": "Deployment", "metadata": {"name": _NAME}, "spec": spec}


def _scaling_patch(deployed: Deployed) -> Document:
    replicas, rows = deployed.replicas, str(deployed.sizes.queued_rows)
    if deployed.autoscaler == "hpa":
        (metric,) = read_one(FOLDER / "components/hpa/horizontal-pod-autoscaler.yaml")["spec"]["metrics"]
        metric["pods"]["target"]["averageValue"] = rows
        spec: Document = {"minReplicas": replicas.least, "maxReplicas": replicas.most, "metrics": [metric]}
        return {"kind": "HorizontalPodAutoscaler", "metadata": {"name": _NAME}, "spec": spec}
    (trigger,) = read_one(FOLDER / "components/keda/scaled-object.yaml")["spec"]["triggers"]
    told = trigger["metadata"]
    # `job` is the instance: see the ServiceMonitor.
    told |= {"threshold": rows, "query": told["query"].replace(f'"{_NAME}"', f'"{deployed.instance}"')}
    spec = {"minReplicaCount": replicas.least, "maxReplicaCount": replicas.most, "triggers": [trigger]}
    return {"kind": "ScaledObject", "metadata": {"name": _NAME}, "spec": spec}


def find(documents: Sequence[Document], kind: str, name: str) -> Document:
    """Return the one document of that kind and name."""
    (found,) = [document for document in documents if identity(document) == (kind, name)]
    return found
