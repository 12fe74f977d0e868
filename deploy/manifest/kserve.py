"""A package as KServe's InferenceService, and the runtime that serves it."""

from pathlib import Path

from fuseline.deploy.manifest.kubernetes import Deployed
from fuseline.deploy.manifest.kustomization import Document, merged, read_one

FOLDER = Path(__file__).parents[1] / "kserve"


def kserve_documents(deployed: Deployed, storage_uri: str) -> list[Document]:
    """Return the ClusterServingRuntime with the package's image, and the InferenceService of the package."""
    runtime = read_one(FOLDER / "cluster-serving-runtime.yaml")
    (container,) = runtime["spec"]["containers"]
    container["image"] = str(deployed.image)
    probe = container["startupProbe"]
    probe["failureThreshold"] = max(probe["failureThreshold"], deployed.sizes.startup_failures)
    service = read_one(FOLDER / "inference-service.yaml")
    service["metadata"]["name"] = deployed.instance
    predictor, sizes = service["spec"]["predictor"], deployed.sizes
    predictor |= {"minReplicas": deployed.replicas.least, "maxReplicas": deployed.replicas.most}
    limits = {"memory": sizes.memory}
    env = {"FUSELINE_THREADS": sizes.cpus, "FUSELINE_DECODE_THREADS": sizes.cpus}
    if deployed.gpu is not None:
        limits[deployed.gpu] = "1"
        # The network's threads are the GPU's matter.
        del env["FUSELINE_THREADS"]
        predictor["tolerations"] = [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
    predictor["model"] = merged(
        predictor["model"],
        {
            "storageUri": storage_uri,
            "resources": {"requests": {"cpu": str(sizes.cpus), "memory": sizes.memory}, "limits": limits},
        },
    )
    predictor["model"]["env"] = [{"name": name, "value": str(value)} for name, value in env.items()]
    return [runtime, service]
