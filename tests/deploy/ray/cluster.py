"""A real Ray cluster of several nodes on this machine, without a dashboard, and what a test asks of it."""

import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from fuseline.benchmarks.harness.cpu_time import family_stats, process_stats
from fuseline.benchmarks.harness.server_process import free_ports

T = TypeVar("T")

ROOT = Path(__file__).resolve().parents[3]

NODE_CPUS = 4
"""CPUs that a node says it has: more than this machine may have, as the models of these tests need hardly any."""

_STORE_BYTES = 80 * 2**20

_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_memory_monitor_refresh_ms": "0",
    "RAY_SERVE_LOG_TO_STDERR": "0",
    "RAY_DEDUP_LOGS": "0",
    "OMP_NUM_THREADS": "1",
    # Workers of Ray begin elsewhere, and import the checkout that is tested.
    "PYTHONPATH": str(ROOT),
}


class RayCluster:
    """A cluster with a head node and `nodes` others, which run no replica and all replicas."""

    def __init__(self, nodes: int, *, dashboard: bool = False) -> None:
        import ray
        from ray.cluster_utils import Cluster

        os.environ.update(_ENVIRONMENT)
        # The paths of Ray's sockets are long, and may have 107 bytes.
        self._folder = Path(tempfile.mkdtemp(prefix="flray", dir="/tmp"))
        self.grpc_port, self.http_port, self.dashboard_port = free_ports(3)
        dashboard_options = {"dashboard_host": "127.0.0.1", "dashboard_port": self.dashboard_port} if dashboard else {}
        self._ray = ray
        self._cluster = Cluster(
            initialize_head=True,
            head_node_args={
                # Its CPUs are for the proxy and for building applications, which need none.
                "num_cpus": 1,
                "resources": {"head": 1},
                "include_dashboard": dashboard,
                "object_store_memory": _STORE_BYTES,
                "temp_dir": str(self._folder),
                "_system_config": {"prestart_worker_first_driver": False, "enable_worker_prestart": False},
                **dashboard_options,
            },
        )
        try:
            self.nodes = [self.add_node() for _ in range(nodes)]
            ray.init(address=self._cluster.address, namespace="tests", log_to_driver=False, configure_logging=False)
        except BaseException:
            self.close()
            raise

    @property
    def address(self) -> str:
        """Address of the cluster, for Ray's command line."""
        return str(self._cluster.address)

    @property
    def grpc_address(self) -> str:
        """Address of the gRPC proxy."""
        return f"127.0.0.1:{self.grpc_port}"

    @property
    def http_address(self) -> str:
        """Address of the HTTP proxy."""
        return f"http://127.0.0.1:{self.http_port}"

    def add_node(self) -> Any:
        """Start one more node that runs replicas."""
        return self._cluster.add_node(num_cpus=NODE_CPUS, object_store_memory=_STORE_BYTES)

    def kill_node(self, node: Any) -> None:
        """Kill a node's processes, as a power cut does."""
        self._cluster.remove_node(node, allow_graceful=False)
        self.nodes.remove(node)

    def start_serve(self) -> None:
        """Start the proxies, with the ports of this cluster."""
        from ray import serve

        from fuseline.deploy.ray.servicers import SERVICER_FUNCTIONS

        serve.start(
            proxy_location="HeadOnly",
            http_options={"host": "127.0.0.1", "port": self.http_port, "request_timeout_s": 60.0},
            grpc_options={"port": self.grpc_port, "grpc_servicer_functions": list(SERVICER_FUNCTIONS)},
        )

    def run(self, package: Path, *, app: str = "model", wait: bool = True, **args: Any) -> None:
        """Serve `package` as the application `app`, or change it; return once it runs as it should."""
        from ray import serve

        from fuseline.deploy.ray import app as build
        from fuseline.deploy.ray.app_args import AppArgs

        given = {"package": package, "backend": "onnxruntime", "metrics_interval_s": 0.5, "health_check_period_s": 1}
        built = build(AppArgs.model_validate(given | args))
        if wait:
            serve.run(built, name=app, route_prefix=f"/{app}")
        else:
            serve._run(built, name=app, route_prefix=f"/{app}", _blocking=False)

    def delete(self, app: str = "model") -> None:
        """Serve the application no more."""
        from ray import serve

        serve.delete(app)

    def status(self, app: str = "model") -> Any:
        """Return Ray's status of the application."""
        from ray import serve

        return serve.status().applications[app]

    def replicas(self, app: str = "model") -> dict[str, int]:
        """Return how many replicas there are in each of Ray's states."""
        its = self.status(app).deployments
        states = its["fuseline"].replica_states if its else {}
        return {state.name: count for state, count in states.items() if count}

    def replica_pids(self, *nodes: Any) -> list[int]:
        """Return the processes of the replicas on `nodes`, or on all."""
        stats = process_stats()
        raylets = {_raylet_pid(node) for node in nodes or self.nodes}
        return [pid for pid, fields in stats.items() if int(fields[1]) in raylets and _is_replica(pid)]

    def close(self) -> None:
        """End everything. Raises `AssertionError` if a process of the cluster is left, which is killed."""
        from ray import serve

        started = {
            pid: fields[19] for its in self._pids() for pid, fields in family_stats(its).items() if pid != os.getpid()
        }
        with contextlib.suppress(Exception):
            serve.shutdown()
        self._ray.shutdown()
        self._cluster.shutdown()

        def left() -> list[int]:
            stats = process_stats()
            # Ended ones that nobody has waited for are no processes any more.
            alive = {pid: fields[19] for pid, fields in stats.items() if fields[0] != "Z"}
            return [pid for pid, start in started.items() if alive.get(pid) == start]

        wait_until(lambda: None if left() else True, 20)
        remaining = left()
        for pid in remaining:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, 9)
        shutil.rmtree(self._folder, ignore_errors=True)
        assert not remaining, f"processes of the cluster are left: {remaining}"

    def _pids(self) -> list[int]:
        head = self._cluster.head_node
        nodes = [*([head] if head else []), *self._cluster.worker_nodes]
        return [its.process.pid for node in nodes for kind in node.all_processes.values() for its in kind]


def _raylet_pid(node: Any) -> int:
    return int(node.all_processes["raylet"][0].process.pid)


def _is_replica(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return (Path("/proc") / str(pid) / "cmdline").read_bytes().startswith(b"ray::ServeReplica")
    return False


@contextlib.contextmanager
def ray_cluster(nodes: int, *, dashboard: bool = False) -> Iterator[RayCluster]:
    """Run a cluster, and end it."""
    cluster = RayCluster(nodes, dashboard=dashboard)
    try:
        yield cluster
    finally:
        cluster.close()


def wait_until(look: Callable[[], T | None], seconds: float) -> T | None:
    """Return what `look` returns as soon as it isn't None; None after `seconds`."""
    ends = time.monotonic() + seconds
    while (seen := look()) is None and time.monotonic() < ends:
        time.sleep(0.1)
    return seen
