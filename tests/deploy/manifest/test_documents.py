"""Documents made of the committed YAML, without a tool; `make manifest-test` holds them against kubectl and Helm."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from fuseline.deploy.manifest.helm import FOLDER as CHART
from fuseline.deploy.manifest.helm import helm_values
from fuseline.deploy.manifest.kserve import kserve_documents
from fuseline.deploy.manifest.kubernetes import FOLDER, find, kubernetes_documents
from fuseline.deploy.manifest.kustomization import Kustomization, build, merged
from fuseline.deploy.manifest.names import Replicas
from fuseline.deploy.manifest.ray import ray_config
from fuseline.deploy.manifest.yaml_text import yaml_text
from tests.deploy.manifest.sample import CPU, GPU

SCALED = Replicas(3, 7)
TEXT = st.text(max_size=40)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=20,
)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.dictionaries(TEXT, JSON, min_size=1, max_size=4), min_size=1, max_size=3))
def test_what_is_written_is_read_again_whatever_the_strings_hold(documents: list[dict[str, Any]]) -> None:
    assert list(yaml.safe_load_all(yaml_text(documents, ["a comment"]))) == documents


@pytest.mark.parametrize(
    "text", ["no", "1e3", "0x1f", "~", "a: b", "# a", "'", '"', "- a", "{{ .Name }}", "a\nb", "\x07"]
)
def test_strings_that_yaml_would_read_otherwise_stay_strings(text: str) -> None:
    assert yaml.safe_load(yaml_text([{"value": text}])) == {"value": text}


def test_a_replica_s_figures_and_names_are_the_package_s() -> None:
    documents = kubernetes_documents(dataclasses.replace(CPU, instance="my-model", replicas=Replicas(4, 4)))
    deployment = find(documents, "Deployment", "my-model-fuseline")
    assert deployment["spec"]["replicas"] == 4
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    assert container["resources"] == {"requests": {"cpu": "2", "memory": "1152Mi"}, "limits": {"memory": "1152Mi"}}
    assert container["env"] == [
        {"name": "FUSELINE_THREADS", "value": "2"},
        {"name": "FUSELINE_DECODE_THREADS", "value": "2"},
    ]
    service = find(documents, "Service", "my-model-fuseline-headless")
    assert service["spec"]["clusterIP"] == "None"
    labels = {"app.kubernetes.io/name": "fuseline", "app.kubernetes.io/instance": "my-model"}
    assert service["spec"]["selector"] == deployment["spec"]["selector"]["matchLabels"] == labels


def test_a_slow_start_raises_the_startup_probe_s_failures_and_a_fast_one_doesn_t_lower_them() -> None:
    for measured, allowed in ((18, 150), (700, 700)):
        deployed = dataclasses.replace(CPU, sizes=dataclasses.replace(CPU.sizes, startup_failures=measured))
        deployment = find(kubernetes_documents(deployed), "Deployment", "resnet18-fuseline")
        (container,) = deployment["spec"]["template"]["spec"]["containers"]
        assert container["startupProbe"]["failureThreshold"] == allowed
        runtime, _ = kserve_documents(deployed, "pvc://a/b")
        assert runtime["spec"]["containers"][0]["startupProbe"]["failureThreshold"] == allowed
        assert helm_values(deployed)["startupFailures"] == allowed


def test_a_gpu_is_the_one_that_was_asked_for() -> None:
    deployed = dataclasses.replace(GPU, gpu="nvidia.com/mig-1g.10gb")
    deployment = find(kubernetes_documents(deployed), "Deployment", "resnet18-fuseline")
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    assert container["resources"]["limits"] == {"memory": "8192Mi", "nvidia.com/mig-1g.10gb": "1"}
    _, service = kserve_documents(deployed, "pvc://a/b")
    model = service["spec"]["predictor"]["model"]
    assert model["resources"]["limits"] == {"memory": "8192Mi", "nvidia.com/mig-1g.10gb": "1"}
    assert [its["name"] for its in model["env"]] == ["FUSELINE_DECODE_THREADS"]
    (application,) = ray_config(deployed, "/models/x", "x")["applications"]
    assert application["args"]["num_gpus"] == 1.0


def test_an_autoscaler_takes_the_number_s_place() -> None:
    for autoscaler, kind in (("hpa", "HorizontalPodAutoscaler"), ("keda", "ScaledObject")):
        deployed = dataclasses.replace(CPU, replicas=SCALED, autoscaler=autoscaler, monitor=True)  # type: ignore[arg-type]
        documents = kubernetes_documents(deployed)
        assert "replicas" not in find(documents, "Deployment", "resnet18-fuseline")["spec"]
        spec = find(documents, kind, "resnet18-fuseline")["spec"]
        assert spec["scaleTargetRef"]["name"] == "resnet18-fuseline"
        assert {spec.get("minReplicas"), spec.get("minReplicaCount")} == {None, 3}
        assert {spec.get("maxReplicas"), spec.get("maxReplicaCount")} == {None, 7}
        monitor = find(documents, "ServiceMonitor", "resnet18-fuseline")
        assert monitor["spec"]["selector"]["matchLabels"]["app.kubernetes.io/instance"] == "resnet18"


def test_the_metric_that_autoscalers_ask_for_is_a_server_s() -> None:
    docs = Path(__file__).parents[3] / "docs" / "observability.md"
    assert "| `fuseline_queued_rows` | model, version |" in docs.read_text()
    hpa = (FOLDER / "components/hpa/horizontal-pod-autoscaler.yaml").read_text()
    keda = (FOLDER / "components/keda/scaled-object.yaml").read_text()
    assert "name: fuseline_queued_rows\n" in hpa
    assert "fuseline_queued_rows{" in keda


def test_ray_gets_the_measured_figures() -> None:
    (application,) = ray_config(dataclasses.replace(CPU, replicas=SCALED), "/models/resnet18", "resnet18")[
        "applications"
    ]
    args = application["args"]
    assert (args["num_cpus"], args["memory"]) == (2.0, 1152 * 2**20)
    assert (args["min_replicas"], args["max_replicas"]) == (3, 7)


def test_the_chart_s_files_are_the_kustomization_s() -> None:
    """Links, so that there is one of each."""
    own = {path.name: path.resolve() for path in (CHART / "base").iterdir()}
    theirs = {
        path.name: path.resolve() for folder in ("base", "components/*") for path in FOLDER.glob(f"{folder}/*.yaml")
    }
    assert own.items() <= theirs.items()
    assert set(own) == {path.name for path in (FOLDER / "base").glob("*.yaml")} - {"kustomization.yaml"} | {
        "horizontal-pod-autoscaler.yaml",
        "scaled-object.yaml",
        "service-monitor.yaml",
        "tls.yaml",
        "tokens.yaml",
    }


def test_a_field_of_a_kustomization_that_is_not_understood_is_not_passed_over(tmp_path: Path) -> None:
    (tmp_path / "kustomization.yaml").write_text("resources: []\nnameSuffix: -x\n")
    with pytest.raises(AssertionError, match="nameSuffix"):
        build(Kustomization.read(tmp_path))


def test_a_strategic_merge_finds_containers_by_name_and_removes_what_is_null() -> None:
    document = {"containers": [{"name": "a", "args": ["x"], "tty": True}, {"name": "b"}], "replicas": 2, "kept": 1}
    patch = {"containers": [{"name": "a", "args": ["y"], "tty": None}, {"name": "c"}], "replicas": None}
    containers = [{"name": "c"}, {"name": "a", "args": ["y"]}, {"name": "b"}]
    assert merged(document, patch) == {"containers": containers, "kept": 1}
    assert document["replicas"] == 2
