"""What is committed, and what `fuseline manifest` writes, by kubectl, Helm and published schemas.

`make manifest-test` runs this.
"""

import copy
import dataclasses
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from fuseline.deploy.manifest import helm, kserve
from fuseline.deploy.manifest.helm import helm_values
from fuseline.deploy.manifest.kserve import kserve_documents
from fuseline.deploy.manifest.kubernetes import FOLDER, Deployed, kubernetes_documents
from fuseline.deploy.manifest.kustomization import Kustomization, build
from fuseline.deploy.manifest.names import Replicas
from tests.deploy.manifest.sample import CPU, GPU
from tests.deploy.manifest.tool_runs import (
    ROOT,
    Document,
    charted,
    close_validators,
    kserve_problems,
    kustomized,
    schema_problems,
    sorted_documents,
)

SCALED = Replicas(3, 7)
VARIANTS: dict[str, Deployed] = {
    "cpu": CPU,
    "gpu": GPU,
    "hpa": dataclasses.replace(CPU, replicas=SCALED, monitor=True),
    "keda": dataclasses.replace(CPU, instance="a-b-c", replicas=SCALED, autoscaler="keda", monitor=True),
    "mig": dataclasses.replace(GPU, gpu="nvidia.com/mig-1g.10gb", replicas=SCALED),
    "one replica": dataclasses.replace(CPU, replicas=Replicas(1, 1), monitor=True),
}


@pytest.fixture(scope="module", autouse=True)
def validators() -> Iterator[None]:
    """Those that the tests start end with them."""
    yield
    close_validators()


COMPONENTS = [path.parent for path in sorted(FOLDER.glob("components/*/kustomization.yaml"))]


@pytest.mark.parametrize(("overlay", "deployed"), [("cpu", CPU), ("gpu", GPU)])
def test_manifest_writes_for_the_sample_what_kubectl_makes_of_its_overlay(overlay: str, deployed: Deployed) -> None:
    by_kubectl = sorted_documents(kustomized(FOLDER / "overlays" / overlay))
    assert sorted_documents(kubernetes_documents(deployed)) == by_kubectl


@pytest.mark.parametrize("components", [[path] for path in COMPONENTS] + [COMPONENTS[1:]], ids=str)
def test_kubectl_builds_every_component_as_manifest_does(tmp_path: Path, components: list[Path]) -> None:
    """In a copy of the folder, as kubectl takes paths within a kustomization's own tree."""
    copied = tmp_path / "kubernetes"
    for path in FOLDER.rglob("*.yaml"):
        target = copied / path.relative_to(FOLDER)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    overlay = copied / "overlays" / "cpu" / "kustomization.yaml"
    fields = yaml.safe_load(overlay.read_text())
    fields["components"] = [f"../../{path.relative_to(FOLDER)}" for path in components]
    overlay.write_text(yaml.safe_dump(fields))
    built = build(Kustomization.read(overlay.parent))
    assert sorted_documents(built) == sorted_documents(kustomized(overlay.parent))
    assert schema_problems(built)[0] == []


@pytest.mark.parametrize("variant", VARIANTS)
def test_what_manifest_writes_is_valid_and_helm_renders_the_same(variant: str) -> None:
    deployed = VARIANTS[variant]
    documents = kubernetes_documents(deployed)
    problems, _ = schema_problems(documents)
    assert problems == []
    (rendered,), _ = charted(helm.FOLDER, [{"name": deployed.instance, "values": helm_values(deployed)}])
    assert sorted_documents(rendered) == sorted_documents(documents)


def test_the_chart_s_tls_and_tokens_are_the_components() -> None:
    overlay = Kustomization.read(FOLDER / "overlays" / "cpu")
    components = [FOLDER / "components" / name for name in ("tls", "tokens")]
    values = helm_values(CPU) | {"tls": {"secret": "fuseline-tls"}, "tokens": {"secret": "fuseline-tokens"}}
    (rendered,), _ = charted(helm.FOLDER, [{"name": "resnet18", "values": values}])
    assert sorted_documents(rendered) == sorted_documents(build(overlay.changed({"components": components})))


def test_every_value_of_the_chart_is_used_and_the_result_is_valid() -> None:
    values = {
        "image": {"repository": "example.org/a", "tag": "", "digest": "sha256:" + "0" * 64, "pullPolicy": "Always"},
        "imagePullSecrets": [{"name": "registry"}],
        "networkPolicy": {"enabled": False},
        "models": {"emptyDir": {}},
        "initContainers": [
            {"name": "fetch", "image": "fetch", "volumeMounts": [{"name": "models", "mountPath": "/m"}]}
        ],
        "args": ["--log-format=json"],
        "env": {"FUSELINE_MAX_BATCH": 8},
        "drainTimeoutSeconds": 12.5,
        "gpu": "nvidia.com/gpu",
        "nodeSelector": {"disk": "ssd"},
        "tolerations": [{"key": "a", "operator": "Exists"}],
        "podAnnotations": {"note": "x"},
        "startupFailures": 7,
    }
    other = {
        "networkPolicy": {"enabled": True, "monitoring": "watch"},
        "autoscaling": {"kind": "keda", "prometheus": "http://p:9090"},
    }
    (rendered, watched), _ = charted(helm.FOLDER, [{"name": "a", "values": values}, {"name": "b", "values": other}])
    assert schema_problems([*rendered, *watched])[0] == []
    (deployment,) = [its for its in rendered if its["kind"] == "Deployment"]
    pod = deployment["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert [its["kind"] for its in rendered if its["kind"] == "NetworkPolicy"] == []
    assert container["image"] == values["image"]["repository"] + "@" + values["image"]["digest"]  # type: ignore[index]
    assert container["args"] == ["serve", "/models", "--log-format=json"]
    assert {"name": "FUSELINE_MAX_BATCH", "value": "8"} in container["env"]
    assert {"name": "FUSELINE_DRAIN_TIMEOUT_S", "value": "12.5"} in container["env"]
    assert pod["terminationGracePeriodSeconds"] == 10 + 13 + 10
    assert container["startupProbe"]["failureThreshold"] == 7
    assert {its["mountPath"] for its in container["volumeMounts"]} == {"/models", "/var/cache/fuseline"}
    assert {its["name"] for its in pod["volumes"]} == {"models", "engines"}
    assert pod["initContainers"] == values["initContainers"]
    assert (pod["nodeSelector"], len(pod["tolerations"])) == ({"disk": "ssd"}, 2)
    assert deployment["spec"]["template"]["metadata"]["annotations"] == {"note": "x"}
    (policy,) = [its for its in watched if its["kind"] == "NetworkPolicy"]
    (selector,) = [
        source["namespaceSelector"]
        for rule in policy["spec"]["ingress"]
        for source in rule["from"]
        if "namespaceSelector" in source
    ]
    assert selector == {"matchLabels": {"kubernetes.io/metadata.name": "watch"}}
    (scaled,) = [its for its in watched if its["kind"] == "ScaledObject"]
    assert scaled["spec"]["triggers"][0]["metadata"]["serverAddress"] == "http://p:9090"


@pytest.mark.parametrize(
    ("values", "name", "reason"),
    [
        ({"replica": 3}, "a", "replica"),
        ({"replicas": 0}, "a", "replicas"),
        ({"cpus": "two"}, "a", "cpus"),
        ({"memory": "lots"}, "a", "memory"),
        ({"gpu": "amd.com/gpu"}, "a", "gpu"),
        ({"autoscaling": {"kind": "vpa"}}, "a", "kind"),
        ({"autoscaling": {"kind": "hpa", "minReplicas": 5, "maxReplicas": 2}}, "a", "is above"),
        ({}, "a" * 46, "45 characters"),
    ],
)
def test_wrong_values_are_refused_by_helm(values: Document, name: str, reason: str) -> None:
    (told,), _ = charted(helm.FOLDER, [{"name": name, "values": values}])
    assert isinstance(told, str), told
    assert reason in told


def test_helms_linter_finds_nothing_wrong() -> None:
    _, lint = charted(helm.FOLDER, [])
    assert lint["errors"] == []
    # An icon is a recommendation.
    assert [its for its in lint["messages"] if its["severity"] > 1] == []


@pytest.mark.parametrize("deployed", [CPU, GPU, VARIANTS["keda"]], ids=["cpu", "gpu", "scaled"])
def test_what_kserve_gets_is_valid(deployed: Deployed) -> None:
    documents = kserve_documents(deployed, "s3://models/resnet18")
    assert kserve_problems(documents)[0] == []
    runtime, service = documents
    (container,) = runtime["spec"]["containers"]
    assert (container["name"], container["ports"][0]["name"]) == ("kserve-container", "h2c")
    assert runtime["spec"]["protocolVersions"] == ["v2", "grpc-v2"]
    assert service["spec"]["predictor"]["model"]["modelFormat"]["name"] == "fuseline"


def test_kserve_s_committed_files_are_those_of_the_sample() -> None:
    runtime, service = [
        yaml.safe_load((kserve.FOLDER / f"{name}.yaml").read_text())
        for name in ("cluster-serving-runtime", "inference-service")
    ]
    image = dataclasses.replace(CPU, image=CPU.image._replace(name="fuseline", tag=""))
    assert kserve_documents(image, "pvc://fuseline-models/resnet18") == [runtime, service]


def _misspelt(document: Document) -> None:
    document["spec"]["template"]["spec"]["containers"][0]["readinessProb"] = {}


def _of_the_wrong_type(document: Document) -> None:
    document["spec"]["template"]["spec"]["containers"][0]["args"] = "serve"


@pytest.mark.parametrize("spoil", [_misspelt, _of_the_wrong_type])
def test_the_schemas_refuse_what_is_wrong(spoil: Callable[[Document], None]) -> None:
    (document,) = [copy.deepcopy(its) for its in kubernetes_documents(CPU) if its["kind"] == "Deployment"]
    spoil(document)
    assert schema_problems([document])[0]


def test_the_schemas_of_custom_resources_refuse_what_is_wrong() -> None:
    documents = kubernetes_documents(VARIANTS["keda"])
    for kind in ("ScaledObject", "ServiceMonitor"):
        (document,) = [copy.deepcopy(its) for its in documents if its["kind"] == kind]
        document["spec"]["misspelt"] = 1
        assert schema_problems([document])[0], kind
    _, service = kserve_documents(CPU, "pvc://a/b")
    service["spec"]["predictor"]["model"]["storageUrl"] = "x"
    assert kserve_problems([service])[0]


@pytest.mark.skipif(sys.version_info >= (3, 14), reason="later versions of the schemas are installed there")
def test_the_docs_name_the_versions_that_this_was_held_against() -> None:
    text = (ROOT / "docs" / "kubernetes.md").read_text()
    _, versions = schema_problems([])
    named = {**versions, "kserve": kserve_problems([])[1]}
    assert [f"{name} {its}" for name, its in named.items() if f"{name} {its}" not in text] == []
