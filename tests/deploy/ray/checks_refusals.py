"""What is wrong with an application, or with a node, is told by Ray's status in Fuseline's own line."""

from pathlib import Path
from typing import Any

import pytest

from tests.deploy.ray.cluster import wait_until

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def refusal(cluster: Any, package: Path, **args: Any) -> str:
    """Serve `package`, wait until Ray gives it up, and return the line that says why."""
    cluster.run(package, app="refused", wait=False, **args)

    def failed() -> str | None:
        status = cluster.status("refused")
        if status.status.name != "DEPLOY_FAILED":
            return None
        return str(status.deployments["fuseline"].message)

    try:
        message = wait_until(failed, 60)
        assert message is not None, cluster.status("refused")
    finally:
        cluster.delete("refused")
    lines = [line for line in message.splitlines() if "fuseline.serve.errors." in line]
    assert lines, message
    return lines[-1]


def test_a_package_that_is_not_on_the_node_is_named_with_the_node(cluster: Any, tmp_path: Path) -> None:
    line = refusal(cluster, tmp_path / "nothing")
    assert "PackageError: on node " in line
    assert str(tmp_path / "nothing") in line


def test_a_broken_package_is_refused_as_by_fuseline_serve(cluster: Any, tiny: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in tiny.iterdir():
        (broken / file.name).write_bytes(file.read_bytes())
    graph = (broken / "model.onnx").read_bytes()
    (broken / "model.onnx").write_bytes(graph[:-1] + b"\x00")
    line = refusal(cluster, broken)
    assert "PackageError: on node " in line
    assert "model.onnx" in line


def test_a_node_that_lacks_what_the_backend_needs_says_so(cluster: Any, tiny: Path) -> None:
    line = refusal(cluster, tiny, backend="tensorrt")
    assert "BackendUnavailableError: on node " in line
    assert "NVIDIA" in line or "tensorrt" in line
