"""Pods of the manifests, run by `podman kube play`; what it leaves out of kubelet's part, the tests do by themselves.

podman 4.3 applies arguments, environment, users, capabilities, the read-only root, its default seccomp profile, volumes
and the memory limit. It publishes every containerPort on all addresses of the machine, so the tests give each a port of
loopback. It knows no gRPC probe, no preStop of the kind `sleep`, no terminationGracePeriodSeconds and no CPU request.
"""

import hashlib
import ssl
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import yaml
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub

from fuseline.deploy.manifest.kustomization import Document
from tests.container.podman import ROOT, Container, Podman

_HASHES = """\
import hashlib, pathlib, sys
root = pathlib.Path(sys.argv[1])
for folder in sys.argv[2:]:
    for path in sorted((root / folder).rglob('*.py')):
        print(path.relative_to(root), hashlib.sha256(path.read_bytes()).hexdigest())
"""
_UNCHECKED = ssl._create_unverified_context()
"""Kubelet doesn't check certificates."""
_IN_IMAGE = "import fuseline; print(list(fuseline.__path__)[0])"
_ROOMS = ("serve", "protos")


class Pod(Container):
    """One pod of one container."""

    def __init__(self, podman: Podman, id: str, container: Document, ports: dict[str, int]) -> None:
        super().__init__(podman, id)
        self._run = podman
        self.fields = container
        """The container as the manifest has it."""
        self.ports = ports
        """Port on loopback by the port's name in the manifest."""

    @property
    def inspected(self) -> dict[str, Any]:
        """What podman knows of the container."""
        (known,) = yaml.safe_load(self._run("inspect", self.id).stdout)
        return dict(known)

    def stop(self, grace_s: float) -> tuple[int, float]:
        """End it as kubelet does: SIGTERM, and SIGKILL after `grace_s`. Return its exit code and the seconds."""
        began = time.monotonic()
        self._run("stop", "--time", int(grace_s), self.id, timeout_s=grace_s + 60)
        return int(self.inspected["State"]["ExitCode"]), time.monotonic() - began

    def probe(self, kind: str) -> bool:
        """Do one probe of the manifest, by gRPC or HTTPS, as kubelet does."""
        asked = self.fields[kind]
        if "httpGet" in asked:
            its = asked["httpGet"]
            url = f"{its['scheme'].lower()}://127.0.0.1:{self.ports[its['port']]}{its['path']}"
            try:
                with urllib.request.urlopen(url, timeout=asked["timeoutSeconds"], context=_UNCHECKED) as answer:
                    return bool(answer.status == 200)
            except OSError:
                return False
        (name,) = [its["name"] for its in self.fields["ports"] if its["containerPort"] == asked["grpc"]["port"]]
        request = HealthCheckRequest(service=asked["grpc"].get("service", ""))
        options = (("grpc.enable_http_proxy", 0),)
        with grpc.insecure_channel(f"127.0.0.1:{self.ports[name]}", options) as channel:
            try:
                answer = HealthStub(channel).Check(request, timeout=asked["timeoutSeconds"])
            except grpc.RpcError:
                return False
        return bool(answer.status == HealthCheckResponse.SERVING)

    def until_started(self) -> tuple[int, float]:
        """Probe as kubelet does at the start; return the number of failures and the seconds until it had started.

        An AssertionError is the container's end in Kubernetes: more probes failed than the manifest allows.
        """
        asked, began = self.fields["startupProbe"], time.monotonic()
        for failures in range(asked["failureThreshold"]):
            next_at = time.monotonic() + asked["periodSeconds"]
            if self.probe("startupProbe"):
                return failures, time.monotonic() - began
            assert self.running, f"it ended: {self.log}"
            time.sleep(max(0.0, next_at - time.monotonic()))
        raise AssertionError(f"{asked['failureThreshold']} startup probes failed: {self.log}")


@contextmanager
def played(podman: Podman, name: str, spec: Document, ports: dict[str, int], folder: Path) -> Iterator[Pod]:
    """Run a pod's `spec`, of one container, as a Deployment does; remove it at the end."""
    (container,) = spec["containers"]
    published = [its | {"hostPort": ports[its["name"]], "hostIP": "127.0.0.1"} for its in container["ports"]]
    document = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name},
        "spec": {
            "selector": {"matchLabels": {"pod": name}},
            "template": {
                "metadata": {"labels": {"pod": name}},
                "spec": spec | {"containers": [container | {"ports": published}]},
            },
        },
    }
    file = folder / f"{name}.yaml"
    file.write_text(yaml.safe_dump(document))
    pod = f"{name}-pod-0"
    try:
        podman("kube", "play", file)
        yield Pod(podman, f"{pod}-{container['name']}", container, ports)
    finally:
        podman("pod", "rm", "--force", "--time", 0, "--ignore", pod)


def is_of_this_checkout(podman: Podman, image: str) -> bool:
    """Whether the Fuseline in an image is the one of this checkout, file by file."""
    if not podman.has_image(image):
        return False
    code, folder = podman.finished(image, "-c", _IN_IMAGE, flags=("--entrypoint", "python"))
    assert code == 0, folder
    arguments = ("-c", _HASHES, folder.strip(), *_ROOMS)
    code, listed = podman.finished(image, *arguments, flags=("--entrypoint", "python"))
    assert code == 0, listed
    ours = [
        f"{path.relative_to(ROOT)} {hashlib.sha256(path.read_bytes()).hexdigest()}"
        for room in _ROOMS
        for path in sorted((ROOT / room).rglob("*.py"))
    ]
    return listed.splitlines() == ours


def with_package(podman: Podman, base: str, package: Path, name: str, folder: Path) -> None:
    """Build `name`: `base` with a package in it, by the two lines of docs/kubernetes.md."""
    (folder / "Dockerfile").write_text(f"FROM {base}\nCOPY {package.name} /models/{package.name}\n")
    assert package.parent == folder
    podman.build_folder(folder, name)
