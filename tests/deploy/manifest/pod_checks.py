"""The pods of what `fuseline manifest` writes, run by podman as kubelet runs them. `make manifest-test` runs this.

Images that `make container-test` has built are taken if they are of this checkout.
"""

import asyncio
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import trustme
import yaml
from PIL import Image as Picture

from fuseline.deploy.manifest.grace import END_S, PRE_STOP_S
from fuseline.deploy.manifest.kserve import FOLDER as KSERVE
from fuseline.deploy.manifest.kubernetes import DRAIN_TIMEOUT_S
from fuseline.deploy.manifest.kustomization import Document, merged
from fuseline.deploy.manifest.quantities import bytes_of
from fuseline.protos.classify_pb2 import ClassifyRequest, Image
from fuseline.protos.classify_pb2_grpc import ClassifierStub
from fuseline.protos.open_inference_pb2 import ModelReadyRequest
from fuseline.protos.open_inference_pb2_grpc import GRPCInferenceServiceStub
from fuseline.serve.access.token_file import new_token, token_line
from fuseline.serve.client.async_client import AsyncClient
from fuseline.serve.errors import UnauthenticatedError
from tests.container.podman import ROOT, Podman, install_tools, provide_base_image
from tests.deploy.manifest.pods import Pod, is_of_this_checkout, played, with_package
from tests.measured import Facts, kept_facts

BASE = "fuseline"
IMAGE = "fuseline-manifest-check:1"
SERVER = "my-digits"
"""An InferenceService's name, which is not the package's."""
CALLERS = 8
_OWN_CONNECTION = (("grpc.use_local_subchannel_pool", 1), ("grpc.enable_http_proxy", 0))


def free_ports(*names: str) -> dict[str, int]:
    """A port of loopback for each name, on which nothing listens."""
    probes = [socket.socket() for _ in names]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    ports = {name: int(probe.getsockname()[1]) for name, probe in zip(names, probes, strict=True)}
    for probe in probes:
        probe.close()
    return ports


@pytest.fixture(scope="module")
def facts() -> Iterator[Facts]:
    """What was measured: printed at the end and kept as build/manifest/measured.json."""
    (ROOT / "build" / "manifest").mkdir(parents=True, exist_ok=True)
    yield from kept_facts(ROOT / "build" / "manifest" / "measured.json")


@pytest.fixture(scope="module")
def podman(facts: Facts) -> Podman:
    """podman, and the serving image of this checkout."""
    # podman makes the container that holds a pod together of catatonit.
    install_tools({"catatonit": "catatonit"})
    podman = Podman()
    if is_of_this_checkout(podman, BASE):
        facts["serving image"] = "was here"
        return podman
    provide_base_image(podman)
    facts["build of target serve, s"] = round(podman.build("serve", BASE))
    return podman


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ResNet-18 with random weights, exported; and a picture beside it."""
    folder = tmp_path_factory.mktemp("models")
    code = (
        "import torch, torchvision\n"
        "torch.manual_seed(0)\n"
        "torch.save(torchvision.models.resnet18().state_dict(), 'resnet18.pt')\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=folder, check=True, timeout=120)
    command = [sys.executable, "-m", "fuseline", "export", "resnet18.pt", "--out", "resnet18"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    pixels = np.random.default_rng(0).integers(0, 256, (300, 400, 3), np.uint8)
    Picture.fromarray(pixels).save(folder / "picture.jpg")
    # pytest makes its folders for their owner alone; the server's user is another.
    folder.chmod(0o755)
    return folder / "resnet18"


@pytest.fixture(scope="module")
def pod_spec(podman: Podman, package: Path, facts: Facts) -> Iterator[Document]:
    """What `fuseline manifest kubernetes` writes for the package, measured here: the pod; its image goes at the end."""
    out = package.parent / "resnet18.yaml"
    command = [sys.executable, "-m", "fuseline", "manifest", "kubernetes", str(package)]
    began = time.monotonic()
    done = subprocess.run(
        [*command, "--image", IMAGE, "--seconds", "3", "--out", str(out)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    facts["`fuseline manifest kubernetes --seconds 3`, s"] = round(time.monotonic() - began, 1)
    text = out.read_text()
    facts["measured"] = " ".join(line[2:] for line in text.splitlines()[1:5])
    (deployment,) = [its for its in yaml.safe_load_all(text) if its["kind"] == "Deployment"]
    with_package(podman, BASE, package, IMAGE, package.parent)
    yield deployment["spec"]["template"]["spec"]
    podman("rmi", IMAGE)


def request_of(package: Path, images: int = 1) -> ClassifyRequest:
    encoded = (package.parent / "picture.jpg").read_bytes()
    return ClassifyRequest(images=[Image(encoded=encoded)] * images)


@asynccontextmanager
async def stub_of(pod: Pod, port: str = "grpc") -> AsyncIterator[ClassifierStub]:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{pod.ports[port]}", _OWN_CONNECTION) as channel:
        yield ClassifierStub(channel)


def most_memory(pod: Pod) -> int:
    """The largest resident memory so far of the pod's process, bytes."""
    peak = re.search(r"VmHWM:\s+(\d+) kB", pod.execute("grep", "VmHWM", "/proc/1/status").stdout)
    assert peak is not None
    return int(peak[1]) * 1024


def kills_for_memory(pod: Pod) -> int:
    """How often the kernel has killed in the pod's control group for its limit (version 1 or 2)."""
    script = "cat /sys/fs/cgroup/memory/memory.oom_control /sys/fs/cgroup/memory.events 2>/dev/null"
    told = dict(line.split() for line in pod.execute("sh", "-c", script).stdout.splitlines())
    return int(told["oom_kill"])


async def test_the_pod_starts_bears_overload_and_ends_in_time(
    podman: Podman, pod_spec: Document, package: Path, facts: Facts, tmp_path: Path
) -> None:
    """One pod from its start to its end, with kubelet's part done as the manifest says it."""
    grace_s = pod_spec["terminationGracePeriodSeconds"]
    with played(podman, f"fuseline-{uuid.uuid4().hex[:8]}", pod_spec, free_ports("grpc", "http"), tmp_path) as pod:
        failures, seconds = await asyncio.to_thread(pod.until_started)
        facts["pod: start to the first startup probe that succeeds, s"] = round(seconds, 1)
        facts["pod: startup probes that failed, of those allowed"] = (
            f"{failures} of {pod.fields['startupProbe']['failureThreshold']}"
        )
        assert pod.probe("readinessProbe")
        assert pod.probe("livenessProbe")
        check_confined(pod)

        limit = bytes_of(pod.fields["resources"]["limits"]["memory"])
        assert pod.inspected["HostConfig"]["Memory"] == limit
        async with probing(pod, "readinessProbe"), probing(pod, "livenessProbe"):
            refused = await overload(pod, package)
        peak = most_memory(pod)
        facts["pod: memory limit, and peak under overload, MiB"] = f"{limit >> 20}, {peak >> 20} ({refused} refused)"
        assert kills_for_memory(pod) == 0
        assert peak < limit

        statuses, answered, counted, end_s = await end_under_load(pod, package, grace_s)
        facts["pod: SIGTERM to its end under load, of the grace period, s"] = (
            f"{end_s:.1f} of {grace_s - PRE_STOP_S} (answered {answered})"
        )
        assert end_s < grace_s - PRE_STOP_S
        # One refusal ends each caller; none came before SIGTERM.
        assert statuses <= {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED}
        assert counted == answered
        assert not pod.inspected["State"]["OOMKilled"]


def check_confined(pod: Pod) -> None:
    """Nobody's user, without capabilities, with a seccomp filter, and nothing to write to."""
    status = pod.execute("cat", "/proc/1/status").stdout
    fields = dict(re.findall(r"^(\w+):\s+(.*)$", status, flags=re.MULTILINE))
    assert fields["Uid"].split() == ["10001"] * 4
    assert {fields[name] for name in ("CapEff", "CapPrm", "CapBnd")} == {"0" * 16}
    assert (fields["NoNewPrivs"], fields["Seccomp"]) == ("1", "2")
    for path in ("/x", "/tmp/x", "/models/x", "/var/cache/fuseline/x"):
        assert pod.execute("touch", path).returncode != 0, path
    assert pod.execute("ls", "/var/run/secrets").returncode != 0


@asynccontextmanager
async def probing(pod: Pod, kind: str) -> AsyncIterator[None]:
    """Probe all the while as kubelet does; it must not fail so often in a row that kubelet would act."""
    asked, failed = pod.fields[kind], [0]

    async def probe_on() -> None:
        while True:
            is_well = await asyncio.to_thread(pod.probe, kind)
            failed.append(0 if is_well else failed[-1] + 1)
            await asyncio.sleep(asked["periodSeconds"])

    task = asyncio.create_task(probe_on())
    try:
        yield
    finally:
        task.cancel()
    assert len(failed) > 1
    assert max(failed) < asked["failureThreshold"], f"{kind} failed {failed}"


async def overload(pod: Pod, package: Path) -> int:
    """Send more pictures at once than may wait; return how many requests were refused for that."""
    refused = 0

    async def call(stub: ClassifierStub) -> None:
        nonlocal refused
        try:
            await stub.Classify(request_of(package, images=64), timeout=120)
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.RESOURCE_EXHAUSTED:
                raise
            refused += 1

    async with stub_of(pod) as stub:
        # 1,280 rows, of which 1,024 may wait.
        await asyncio.gather(*(call(stub) for _ in range(20)))
    return refused


async def end_under_load(pod: Pod, package: Path, grace_s: float) -> tuple[set[Any], int, int, float]:
    """Delete the pod under load, with the manifest's preStop; return what callers got and the server counted.

    They go on calling, as clients that haven't heard of it do.
    """
    answered = 0
    stopping = asyncio.Event()

    async def call_until_refused() -> grpc.StatusCode:
        nonlocal answered
        async with stub_of(pod) as stub:
            while True:
                try:
                    await stub.Classify(request_of(package), timeout=60)
                except grpc.aio.AioRpcError as error:
                    if not stopping.is_set():
                        raise
                    return error.code()
                answered += 1

    before = answers_so_far(pod)
    callers = [asyncio.create_task(call_until_refused()) for _ in range(CALLERS)]
    # Kubelet's part: preStop first, then SIGTERM, and SIGKILL at the end of the period that began with preStop.
    pre_stop_s = pod.fields["lifecycle"]["preStop"]["sleep"]["seconds"]
    await asyncio.sleep(pre_stop_s)
    assert answered > 0
    stopping.set()
    code, end_s = await asyncio.to_thread(pod.stop, grace_s - pre_stop_s)
    ends = await asyncio.gather(*callers)
    assert code == 0, pod.log
    counts = re.findall(r"(\d+) ([A-Z_]+)", pod.log.partition("drained; answers since the start:")[2])
    return set(ends), answered, {name: int(count) for count, name in counts}["OK"] - before, end_s


def answers_so_far(pod: Pod) -> int:
    """How many requests the server has answered with OK, by its metrics."""
    script = "import urllib.request as u; print(u.urlopen('http://127.0.0.1:8002/metrics').read().decode())"
    text = pod.execute("python", "-c", script).stdout
    found = re.findall(r'^fuseline_requests_total\{code="OK",.*\} ([\d.e+]+)$', text, flags=re.MULTILINE)
    return int(sum(map(float, found)))


def test_the_grace_period_is_what_its_parts_make(pod_spec: Document) -> None:
    assert pod_spec["terminationGracePeriodSeconds"] == PRE_STOP_S + DRAIN_TIMEOUT_S + END_S


async def test_kserve_s_container_serves_the_package_by_the_service_s_name(
    podman: Podman, package: Path, facts: Facts, tmp_path: Path
) -> None:
    """With what KServe does of a runtime: the name filled in, the package at /mnt/models."""
    runtime = yaml.safe_load((KSERVE / "cluster-serving-runtime.yaml").read_text())
    (container,) = json.loads(json.dumps(runtime["spec"]["containers"]).replace("{{.Name}}", SERVER))
    spec = {
        "containers": [container | {"volumeMounts": [{"name": "model", "mountPath": "/mnt/models", "readOnly": True}]}],
        "volumes": [{"name": "model", "hostPath": {"path": str(package), "type": "Directory"}}],
    }
    with played(podman, f"kserve-{uuid.uuid4().hex[:8]}", spec, free_ports("h2c"), tmp_path) as pod:
        _, seconds = await asyncio.to_thread(pod.until_started)
        facts["KServe's container: start to the first startup probe that succeeds, s"] = round(seconds, 1)
        assert pod.probe("readinessProbe")
        assert pod.probe("livenessProbe")
        async with stub_of(pod, "h2c") as stub:
            answer = await stub.Classify(request_of(package), timeout=60)
        assert answer.model == SERVER
        async with grpc.aio.insecure_channel(f"127.0.0.1:{pod.ports['h2c']}", _OWN_CONNECTION) as channel:
            ready = await GRPCInferenceServiceStub(channel).ModelReady(ModelReadyRequest(name=SERVER))
        assert ready.ready
        code, _ = await asyncio.to_thread(pod.stop, 30)
        assert code == 0, pod.log


async def test_packages_may_come_from_a_claim(
    podman: Podman, pod_spec: Document, package: Path, tmp_path: Path
) -> None:
    """By the component models-claim, whose claim is a volume of podman here."""
    patch = yaml.safe_load((ROOT / "deploy/kubernetes/components/models-claim/models.yaml").read_text())
    its = patch["spec"]["template"]["spec"]
    volume = f"fuseline-{uuid.uuid4().hex[:8]}"
    its["volumes"][0]["persistentVolumeClaim"]["claimName"] = volume
    (container,) = pod_spec["containers"]
    spec = pod_spec | {
        "containers": [container | {"image": BASE, "volumeMounts": its["containers"][0]["volumeMounts"]}],
        "volumes": its["volumes"],
    }
    podman("volume", "create", volume)
    try:
        place = podman("volume", "inspect", "--format", "{{.Mountpoint}}", volume).stdout.strip()
        shutil.copytree(package, Path(place) / "mine")
        with played(podman, volume, spec, free_ports("grpc", "http"), tmp_path) as pod:
            await asyncio.to_thread(pod.until_started)
            async with stub_of(pod) as stub:
                assert (await stub.Classify(request_of(package), timeout=60)).model == "resnet18"
    finally:
        podman("volume", "rm", "--force", volume)


async def test_with_tls_and_tokens_probes_are_https_and_calls_need_both(
    podman: Podman, pod_spec: Document, package: Path, tmp_path: Path
) -> None:
    """By the components tls and tokens; podman 4.3 has no volumes of secrets, so folders stand for them."""
    authority = trustme.CA()
    certificate = authority.issue_cert("localhost")
    secrets = {name: tmp_path / name for name in ("tls", "tokens")}
    for folder in (tmp_path, *secrets.values()):
        folder.mkdir(exist_ok=True)
        folder.chmod(0o755)
    certificate.cert_chain_pems[0].write_to_path(secrets["tls"] / "tls.crt")
    certificate.private_key_pem.write_to_path(secrets["tls"] / "tls.key")
    token = new_token()
    (secrets["tokens"] / "hashes").write_text(f"{token_line(token, name='check', role='infer')}\n")
    spec = pod_spec
    for name, folder in secrets.items():
        patch = yaml.safe_load((ROOT / f"deploy/kubernetes/components/{name}/{name}.yaml").read_text())
        its = patch["spec"]["template"]["spec"]
        its["volumes"] = [{"name": name, "hostPath": {"path": str(folder), "type": "Directory"}}]
        its["containers"][0]["name"] = "fuseline"
        for file in folder.iterdir():
            file.chmod(0o644)
        spec = merged(spec, its)
    with played(podman, f"fuseline-{uuid.uuid4().hex[:8]}", spec, free_ports("grpc", "http"), tmp_path) as pod:
        await asyncio.to_thread(pod.until_started)
        assert pod.probe("readinessProbe")
        assert pod.probe("livenessProbe")
        ca = tmp_path / "ca.pem"
        authority.cert_pem.write_to_path(ca)
        address = f"localhost:{pod.ports['grpc']}"
        async with AsyncClient(address, ca=ca, token=token) as client:
            assert (await client.classify(package.parent / "picture.jpg")).model == "resnet18"
        async with AsyncClient(address, ca=ca) as client:
            with pytest.raises(UnauthenticatedError):
                await client.classify(package.parent / "picture.jpg")


def test_manifest_in_the_serving_image_says_what_it_lacks(podman: Podman) -> None:
    code, log = podman.finished(BASE, "manifest", "kubernetes", "/models/resnet18")
    assert (code, log) == (2, "error: yaml is not installed; pip install 'fuseline[deploy]'\n")
