"""`serve deploy` and `serve run`, as docs/ray.md has them, on a node that `ray start` started."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
import yaml

from fuseline.benchmarks.harness.cpu_time import family_stats, process_stats
from fuseline.benchmarks.harness.server_process import free_ports
from fuseline.deploy.ray.serve_config import serve_config
from fuseline.protos.classify_pb2_grpc import ClassifierStub
from fuseline.serve.errors import InputError
from tests.deploy.ray.cluster import ROOT, wait_until
from tests.deploy.ray.load import Expected, load_on
from tests.serve.services.classify_requests import raw_request

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::DeprecationWarning")]

BIN = Path(sys.executable).parent
_START_S = 60
_END_S = 60


@dataclass(frozen=True)
class Node:
    """A head node with its dashboard, which `serve deploy` talks to."""

    address: str
    dashboard: str
    grpc_port: int
    http_port: int
    environment: dict[str, str]

    def run(self, *command: str, timeout_s: float = 120) -> subprocess.CompletedProcess[str]:
        """Run a command of Ray's."""
        return subprocess.run(
            [str(BIN / command[0]), *command[1:]],
            check=False,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            env=self.environment,
            cwd=ROOT,
        )

    def status(self) -> dict[str, Any]:
        """Return what `serve status` says of the applications."""
        done = self.run("serve", "status", "-a", self.dashboard)
        assert done.returncode == 0, done.stderr
        applications: dict[str, Any] = (yaml.safe_load(done.stdout) or {}).get("applications", {})
        return applications

    def until(self, state: str, app: str = "tiny") -> str:
        """Wait until the application is in this state, and return its messages."""

        def look() -> dict[str, Any] | None:
            its = self.status().get(app)
            return its if its and its["status"] == state else None

        its = wait_until(look, 90)
        assert its is not None, self.status()
        return f"{its['message']} {[deployment['message'] for deployment in its['deployments'].values()]}"


@pytest.fixture(scope="module")
def node() -> Iterator[Node]:
    folder = Path(tempfile.mkdtemp(prefix="flray", dir="/tmp"))
    gcs, dashboard, agent, grpc_port, http_port = free_ports(5)
    environment = os.environ | {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_memory_monitor_refresh_ms": "0",
        "RAY_enable_worker_prestart": "0",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
        "RAY_ADDRESS": f"127.0.0.1:{gcs}",
        "PYTHONWARNINGS": "ignore",
    }
    command = [
        *(str(BIN / "ray"), "start", "--head", "--block", "--disable-usage-stats", "--node-ip-address", "127.0.0.1"),
        *("--port", str(gcs), "--num-cpus", "4", "--object-store-memory", str(80 * 2**20)),
        *("--include-dashboard", "true", "--dashboard-host", "127.0.0.1", "--dashboard-port", str(dashboard)),
        *("--dashboard-agent-listen-port", str(agent), "--temp-dir", str(folder)),
    ]
    started_with = {name: value for name, value in environment.items() if name != "RAY_ADDRESS"}
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, env=started_with, cwd=ROOT, stdout=log, stderr=log)
        its = Node(f"127.0.0.1:{gcs}", f"http://127.0.0.1:{dashboard}", grpc_port, http_port, environment)
        try:
            up = wait_until(
                lambda: True if its.run("serve", "status", "-a", its.dashboard).returncode == 0 else None, _START_S
            )
            if not up:
                log.seek(0)
                raise AssertionError(log.read().decode(errors="replace")[-3000:])
            yield its
        finally:
            started = family_stats(process.pid)
            process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_END_S)
            _end(started)
            process.wait(_END_S)
            shutil.rmtree(folder, ignore_errors=True)


def _end(started: dict[int, list[str]]) -> None:
    """Kill what is left of the processes that were the node's."""
    time.sleep(1)
    now = process_stats()
    for pid, fields in started.items():
        if pid in now and now[pid][19] == fields[19]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def config_of(node: Node, package: Path, folder: Path, **args: Any) -> Path:
    """Write a Serve config of `package`, for the ports of `node`, and return its path."""
    config = serve_config(str(package), name="tiny", backend="onnxruntime", health_check_period_s=1.0, **args)
    config["http_options"] |= {"host": "127.0.0.1", "port": node.http_port}
    config["grpc_options"] |= {"port": node.grpc_port}
    config["proxy_location"] = "HeadOnly"
    path = folder / "serve.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def test_a_config_is_deployed_and_changed_under_load(node: Node, tiny: Path, tmp_path: Path) -> None:
    expected = Expected.of(tiny)
    done = node.run("serve", "deploy", str(config_of(node, tiny, tmp_path)), "-a", node.dashboard)
    assert done.returncode == 0, done.stderr
    node.until("RUNNING")
    with load_on(f"127.0.0.1:{node.grpc_port}", [expected], clients=4) as load:
        assert wait_until(lambda: True if load.answered > 20 else None, 30)
        changed = config_of(node, tiny, tmp_path, max_batch=8)
        assert node.run("serve", "deploy", str(changed), "-a", node.dashboard).returncode == 0
        time.sleep(1)
        node.until("RUNNING")
        answered = load.answered
        assert wait_until(lambda: True if load.answered > answered + 20 else None, 30)
    assert (load.failed, load.wrong) == ([], 0)


def test_generated_servicer_functions_work_too(node: Node, tiny: Path, tmp_path: Path) -> None:
    path = config_of(node, tiny, tmp_path)
    assert "fuseline.protos" not in path.read_text()
    done = node.run(
        "python",
        "-c",
        "from ray.serve.config import gRPCOptions; print(len(gRPCOptions(grpc_servicer_functions=["
        "'fuseline.protos.classify_pb2_grpc.add_ClassifierServicer_to_server',"
        "'fuseline.protos.open_inference_pb2_grpc.add_GRPCInferenceServiceServicer_to_server']"
        ").grpc_servicer_func_callable))",
    )
    assert done.stdout.strip() == "2", done.stderr


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"pakage": "/x"}, "pakage is no argument of this application; there are package, name"),
        ({"max_batch": "many"}, "max_batch was given 'many': input should be a valid integer"),
    ],
)
def test_a_wrong_argument_of_a_config_is_told_by_its_status(
    args: dict[str, Any], message: str, node: Node, tiny: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError):
        config_of(node, tiny, tmp_path, **args)
    path = config_of(node, tiny, tmp_path)
    config = yaml.safe_load(path.read_text())
    config["applications"][0]["args"] |= args
    path.write_text(yaml.safe_dump(config))
    assert node.run("serve", "deploy", str(path), "-a", node.dashboard).returncode == 0
    time.sleep(1)
    assert message in node.until("DEPLOY_FAILED")


def test_serve_run_takes_arguments_by_name(node: Node, tiny: Path, tmp_path: Path) -> None:
    done = node.run(
        *("serve", "run", "--non-blocking", "--name", "tiny", "fuseline.deploy.ray:app"),
        *(f"package={tiny}", "backend=onnxruntime", "name=renamed"),
    )
    assert done.returncode == 0, done.stderr
    node.until("RUNNING")
    expected = Expected.of(tiny)
    with grpc.insecure_channel(f"127.0.0.1:{node.grpc_port}") as channel:
        answer = ClassifierStub(channel).Classify(raw_request(expected.pixels[:1]), timeout=30)
    assert answer.model == "renamed"


def test_serve_run_with_a_wrong_argument_ends_with_one_line(node: Node, tiny: Path) -> None:
    done = node.run(*("serve", "run", "--non-blocking", "fuseline.deploy.ray:app"), f"package={tiny}", "lanes=many")
    assert done.returncode != 0
    last = done.stderr.strip().splitlines()[-1]
    assert last.endswith(
        "lanes was given 'many': input should be a valid integer, unable to parse string as an integer"
    )
