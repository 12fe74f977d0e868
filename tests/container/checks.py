"""The container, built, run and held to what docs/container.md says of it. `make container-test` runs this."""

import asyncio
import json
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.request import Request, urlopen

import grpc
import pytest
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub

from fuseline.protos.classify_pb2 import ClassifyRequest, Image
from fuseline.protos.classify_pb2_grpc import ClassifierStub
from fuseline.serve.client import Client
from fuseline.serve.errors import FuselineError
from tests.container.conftest import typed
from tests.container.podman import ROOT, WORK, Container, Podman, base_image
from tests.measured import Facts

MAX_SERVE_LAYERS_BYTES = 300e6
CLIENTS = 8
TOOLS = ROOT / "build" / "container-tools" / "bin"

HARDENED = ("--read-only", "--read-only-tmpfs=false", "--cap-drop=ALL", "--security-opt=no-new-privileges")
"""Nothing at all can be written, nothing be gained."""

FreePort = Callable[[], int]


@contextmanager
def served(
    podman: Podman, image: str, package: Path, port: int, *flags: object, command: tuple[str, ...] = ()
) -> Iterator[tuple[Container, str]]:
    """A hardened server of `package` that is ready; yields it and its address outside."""
    publish = ("--publish", f"127.0.0.1:{port}:8001", "--volume", f"{package}:/models/{package.name}:ro")
    with podman.container(image, *command, flags=(*HARDENED, *publish, *flags)) as container:
        container.until_logged("ready in")
        yield container, f"127.0.0.1:{port}"


def resident_mb(container: Container) -> int:
    peak = re.search(r"VmHWM:\s+(\d+) kB", container.execute("grep", "VmHWM", "/proc/1/status").stdout)
    assert peak is not None
    return round(int(peak[1]) * 1024 / 1e6)


def test_the_dockerfile_is_clean() -> None:
    done = subprocess.run([TOOLS / "hadolint", "Dockerfile"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_compose_knows_what_is_in_the_file() -> None:
    done = subprocess.run(
        [TOOLS / "podman-compose", "--profile", "client", "config"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "condition: service_healthy" in done.stdout
    assert "fuseline health" in " ".join(re.findall(r"- (\S+)", done.stdout))


def test_on_a_bare_system_these_first_checks_install_what_they_run(podman: Podman) -> None:
    # The base image stands for the system; what the machine has for apt and Python lies outside it.
    outside = (ROOT, sys.base_prefix, "/etc/apt", "/etc/ssl/certs")
    first = "test_the_dockerfile_is_clean or test_compose_knows_what_is_in_the_file"
    checks = f"{sys.executable} -B -m pytest -p no:cacheprovider tests/container/checks.py -k '{first}'"
    code, log = podman.finished(
        base_image(),
        *("sh", "-c", f"! command -v podman && exec {checks}"),
        flags=(
            *(flag for path in outside for flag in ("--volume", f"{path}:{path}:ro")),
            *("--network=host", "--tmpfs", WORK, "--workdir", ROOT),
        ),
    )
    assert code == 0, log
    assert "2 passed" in log


def test_the_serving_image_is_small_has_no_torch_and_a_user_of_its_own(
    podman: Podman, serve_image: str, facts: Facts
) -> None:
    image, base = podman.image(serve_image), podman.image(base_image())
    layers_bytes = int(str(image["Size"])) - int(str(base["Size"]))
    facts["image of target serve, MB on top of the base image"] = round(layers_bytes / 1e6)
    facts["base image, MB"] = round(int(str(base["Size"])) / 1e6)
    assert layers_bytes <= MAX_SERVE_LAYERS_BYTES
    assert image["User"] == "10001"
    code, log = podman.finished(serve_image, "-c", "import torch", flags=("--entrypoint", "python"))
    assert code == 1
    assert "No module named 'torch'" in log
    code, log = podman.finished(serve_image, "doctor")
    assert "OpenVINO is chosen" in log


def test_the_bill_of_materials_names_every_package_that_is_in_the_image(podman: Podman, serve_image: str) -> None:
    code = (
        "import importlib.metadata as m, json\n"
        "bill = json.load(open('/opt/fuseline/sbom.cdx.json'))\n"
        "assert bill['bomFormat'] == 'CycloneDX'\n"
        "named = {(c['name'].lower(), c['version']) for c in (*bill['components'], bill['metadata']['component'])}\n"
        "there = {(d.name.lower(), d.version) for d in m.distributions()}\n"
        "assert named == there, named ^ there\n"
        "print(len(named))\n"
    )
    code, log = podman.finished(serve_image, "-c", code, flags=("--entrypoint", "python"))
    assert code == 0, log
    assert int(log) > 20


def test_the_export_image_has_torch_and_its_size_is_told(podman: Podman, export_image: str, facts: Facts) -> None:
    image, base = podman.image(export_image), podman.image(base_image())
    code, log = podman.finished(export_image, "python", "-c", "import torch; print(torch.__version__)")
    assert code == 0, log
    size_mb = round((int(str(image["Size"])) - int(str(base["Size"]))) / 1e6)
    facts["image of target export, MB on top of the base image"] = f"{size_mb} (torch {log.strip()})"


def test_both_commands_of_the_readme_do_what_it_says(
    podman: Podman, serve_image: str, package: Path, work: Path, readme_commands: list[str]
) -> None:
    assert {path.name for path in package.iterdir()} >= {"manifest.json", "model.onnx", "model.fp16.onnx"}
    (command,) = [line for line in readme_commands if serve_image in line.split()]
    assert command == f"docker run -p 8001:8001 -v $PWD/resnet18:/models/resnet18 {serve_image}"
    server = subprocess.Popen(
        typed(command), cwd=work, env=podman.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        deadline = time.monotonic() + 60
        with Client("127.0.0.1:8001") as client:
            while True:
                try:
                    answer = client.classify(work / "picture0.jpg", top_k=5)
                    break
                except FuselineError:
                    assert server.poll() is None, server.communicate()[0]
                    assert time.monotonic() < deadline
                    time.sleep(0.2)
        assert (answer.model, len(answer.results[0].predictions)) == ("resnet18", 5)
        server.send_signal(signal.SIGTERM)
        log = server.communicate(timeout=60)[0]
        assert server.returncode == 0, log
        assert "drained; answers since the start: 1 OK" in log
    finally:
        podman.forget_containers_with(package)
        server.kill()


def test_the_same_answers_on_both_runtimes_and_what_starting_takes(
    podman: Podman, serve_image: str, package: Path, work: Path, facts: Facts, free_port: FreePort
) -> None:
    logits = []
    for backend in ("openvino", "onnxruntime"):
        started = time.monotonic()
        # The package was exported with --fp16, which some CPUs serve in BF16 unless told otherwise.
        flags = ("--env", f"FUSELINE_BACKEND={backend}", "--env", "FUSELINE_PRECISION=fp32")
        with served(podman, serve_image, package, free_port(), *flags) as (container, address):
            facts[f"{backend}: `run` to ready, s"] = round(time.monotonic() - started, 1)
            facts[f"{backend}: process start to ready, s"] = float(re.findall(r"ready in ([\d.]+)", container.log)[0])
            facts[f"{backend}: resident when ready, peak MB"] = resident_mb(container)
            with Client(address) as client:
                answer = client.classify([work / "picture0.jpg"] * 32, return_logits=True)
            logits.append(answer.results[0].logits)
            facts[f"{backend}: resident after a request of 32 images, peak MB"] = resident_mb(container)
    assert abs(logits[0] - logits[1]).max() < 1e-3


def test_the_page_is_in_the_image_for_who_asks_for_it(
    podman: Podman, serve_image: str, package: Path, free_port: FreePort
) -> None:
    for flags, is_there in (((), False), (("--env", "FUSELINE_CONSOLE=true"), True)):
        http = free_port()
        publish = ("--publish", f"127.0.0.1:{http}:8002")
        with served(podman, serve_image, package, free_port(), *publish, *flags) as (container, _):
            page = urlopen(Request(f"http://127.0.0.1:{http}/", headers={"Accept": "text/html"}), timeout=10).read()
            assert (b"<!doctype html>" in page) is is_there
            assert ("watch it: http://localhost:8002/" in container.log) is is_there
            if is_there:
                facts = json.load(urlopen(f"http://127.0.0.1:{http}/console/server", timeout=10))
                assert [model["name"] for model in facts["models"]] == ["resnet18"]
                assert facts["load"]["allowed"] is False
                for name in re.findall(rb'(?:src|href)="/console/([^"]+)"', page):
                    assert urlopen(f"http://127.0.0.1:{http}/console/{name.decode()}", timeout=10).status == 200


def test_it_runs_unprivileged_writes_nothing_and_its_health_check_is_grpcs(
    podman: Podman, serve_image: str, package: Path, work: Path, tmp_path: Path
) -> None:
    # The port of the variable is the health check's too. A read-only engine cache is of use while an engine is in it.
    tmp_path.chmod(0o755)
    (tmp_path / "0.plan").touch()
    engines = ("--volume", f"{tmp_path}:/engines:ro", "--env", "FUSELINE_ENGINE_CACHE=/engines")
    flags = ("--env", "FUSELINE_PORT=9001", *engines)
    with podman.container(
        serve_image, flags=(*HARDENED, *flags, "--volume", f"{package}:/models/resnet18:ro")
    ) as container:
        container.until_logged("ready in")
        assert container.execute("id", "-u").stdout.strip() == "10001"
        assert "Read-only file system" in container.execute("touch", "/tmp/x").stderr
        assert re.search(r"^CapEff:\s+0+$", container.execute("cat", "/proc/1/status").stdout, re.MULTILINE)
        assert container.health() == ""
        container.signal("STOP")
        assert "no answer" in container.execute("fuseline", "health", "--timeout-s", "1").stdout
        container.signal("CONT")
        # The client is in the same image, as compose.yaml uses it.
        code, log = podman.finished(
            serve_image,
            *("classify", "/pictures", "--json"),
            flags=(
                *("--network", f"container:{container.id}", "--env", "FUSELINE_ADDRESS=127.0.0.1:9001"),
                *("--volume", f"{work}:/pictures:ro"),
            ),
        )
        assert code == 0, log
        files = [json.loads(line)["image"] for line in log.splitlines()]
        assert files == [f"/pictures/picture{n}.jpg" for n in range(4)]


async def test_sigterm_under_load_loses_nothing(
    podman: Podman, serve_image: str, package: Path, work: Path, facts: Facts, free_port: FreePort
) -> None:
    request = ClassifyRequest(images=[Image(encoded=(work / "picture1.jpg").read_bytes())])
    answered = 0

    async def call_until_refused(stub: ClassifierStub, container: Container) -> grpc.StatusCode:
        nonlocal answered
        while True:
            try:
                await stub.Classify(request, timeout=60)
            except grpc.aio.AioRpcError as error:
                return error.code()
            answered += 1
            if answered == 4 * CLIENTS:
                await asyncio.to_thread(container.signal, "TERM")

    with served(podman, serve_image, package, free_port()) as (container, address):
        async with grpc.aio.insecure_channel(address, [("grpc.enable_http_proxy", 0)]) as channel:
            health = await HealthStub(channel).Check(HealthCheckRequest())
            assert health.status == HealthCheckResponse.SERVING
            stub = ClassifierStub(channel)
            ends = await asyncio.gather(*(call_until_refused(stub, container) for _ in range(CLIENTS)))
        assert await asyncio.to_thread(container.exit_code) == 0
        log = container.log
    counts = re.findall(r"(\d+) ([A-Z_]+)", log.partition("drained; answers since the start:")[2])
    assert {name: int(count) for count, name in counts}["OK"] == answered >= 4 * CLIENTS
    assert {name for _, name in counts} <= {"OK", "UNAVAILABLE"}
    assert set(ends) <= {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED}
    facts[f"SIGTERM under {CLIENTS} clients: admitted and answered"] = f"{answered} of {answered}"


class TestBadInput:
    """One clear line, and an exit code."""

    def refused(self, podman: Podman, image: str, *flags: object, command: tuple[str, ...] = ()) -> str:
        code, log = podman.finished(image, *command, flags=(*HARDENED, *flags))
        assert code == 2, log
        assert "Traceback" not in log
        return log

    def test_no_model(self, podman: Podman, serve_image: str) -> None:
        log = self.refused(podman, serve_image)
        assert re.fullmatch(r"error: /models is no model package and holds none; .*:/models/resnet18\); .*\n", log)

    @pytest.mark.parametrize("closed", ["", "manifest.json", "model.onnx"])
    def test_a_model_that_the_servers_user_may_not_read(
        self, podman: Podman, serve_image: str, package: Path, closed: str
    ) -> None:
        path = package / closed
        mode = path.stat().st_mode
        path.chmod(0o700)
        try:
            log = self.refused(podman, serve_image, "--volume", f"{package}:/models/resnet18:ro")
        finally:
            path.chmod(mode)
        (line,) = log.splitlines()
        assert line.startswith("error: /models/resnet18/")
        assert line.endswith("Permission denied; `chmod -R a+rX` on the package lets every user read it")

    def test_a_read_only_engine_cache(self, podman: Podman, serve_image: str, package: Path, tmp_path: Path) -> None:
        tmp_path.chmod(0o755)
        log = self.refused(
            podman,
            serve_image,
            *("--volume", f"{package}:/models/resnet18:ro", "--volume", f"{tmp_path}:/engines:ro"),
            *("--env", "FUSELINE_ENGINE_CACHE=/engines"),
        )
        assert re.fullmatch(r"error: --engine-cache /engines holds no engine and can't keep one \(.*\); .*\n", log)

    @pytest.mark.parametrize("word", ["sevre", "resnet18"])
    def test_a_wrong_command(self, podman: Podman, serve_image: str, word: str) -> None:
        assert f"No such command '{word}'" in self.refused(podman, serve_image, command=(word,))

    def test_export_in_the_image_that_serves(self, podman: Podman, serve_image: str) -> None:
        log = self.refused(podman, serve_image, command=("export", "resnet18.pt"))
        assert re.fullmatch(r"error: (onnx|torch) is not installed; .*\n", log)

    def test_a_taken_port(self, podman: Podman, serve_image: str, package: Path) -> None:
        with socket.socket() as taken:
            taken.bind(("0.0.0.0", 0))
            taken.listen()
            port = taken.getsockname()[1]
            flags = ("--network=host", "--env", f"FUSELINE_PORT={port}", "--env", "FUSELINE_HTTP_PORT=0")
            log = self.refused(podman, serve_image, *flags, "--volume", f"{package}:/models/resnet18:ro")
        assert re.fullmatch(rf"error: gRPC can't listen on 0\.0\.0\.0:{port} \(Address already in use\); .*\n", log)

    @pytest.mark.parametrize("backend", ["openvino", "onnxruntime"])
    @pytest.mark.parametrize("mib", [48, 80, 128, 192])
    def test_too_little_memory(self, podman: Podman, serve_image: str, package: Path, mib: int, backend: str) -> None:
        limit = ("--memory", f"{mib}m", "--memory-swap", f"{mib}m", "--env", f"FUSELINE_BACKEND={backend}")
        log = self.refused(podman, serve_image, *limit, "--volume", f"{package}:/models/resnet18:ro")
        assert re.fullmatch(rf"error: too little memory to start: \d+ of the {mib} MiB .*\n", log)

    def test_a_container_that_is_started_again_says_each_time_why_it_ended(
        self, podman: Podman, serve_image: str
    ) -> None:
        with podman.container(serve_image, flags=(*HARDENED, "--restart=on-failure:2")) as container:
            deadline = time.monotonic() + 60
            while container.log.count("error: /models is no model package") < 3:
                assert time.monotonic() < deadline, container.log
                time.sleep(0.2)
