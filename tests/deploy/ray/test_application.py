"""What Ray is told. Ray is imported here alone, which takes a second or two, and its warnings are its own."""

import inspect
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fuseline.deploy.ray.app_args import AppArgs
from fuseline.deploy.ray.watchdog import Watchdog
from fuseline.serve.errors import BackendLostError, InputError

ROOT = Path(__file__).resolve().parents[3]

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture(scope="module")
def application() -> Any:
    """The module that makes the application."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from fuseline.deploy.ray import application
    return application


def args(**given: Any) -> AppArgs:
    return AppArgs.model_validate({"package": "/models/a"} | given)


def run(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, check=False, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_importing_the_application_imports_no_torch() -> None:
    assert run("import sys; from fuseline.deploy.ray import app; print(app.__name__, 'torch' in sys.modules)") == (
        "app False"
    )


def test_a_serve_config_is_written_without_ray() -> None:
    code = "import sys; import fuseline.deploy.ray.serve_config as it; print(it.__name__, 'ray' in sys.modules)"
    assert run(code) == "fuseline.deploy.ray.serve_config False"


def test_ray_builds_the_application_from_texts_as_of_a_command_line(application: Any) -> None:
    from ray.serve._private.api import call_user_app_builder_with_args_if_necessary as build

    built = build(application.app, {"package": "/models/a", "num_gpus": "0.25", "max_batch": "16"})
    deployment = built._bound_deployment
    assert deployment.name == "fuseline"
    assert deployment.ray_actor_options["num_gpus"] == 0.25
    assert deployment.init_args[0].max_batch == 16
    with pytest.raises(InputError, match=r"^max_batch was given 'x': input should be a valid integer"):
        build(application.app, {"package": "/models/a", "max_batch": "x"})


def test_a_fixed_number_of_replicas_is_not_scaled(application: Any) -> None:
    options = application.deployment_options(args(min_replicas=3))
    assert options["num_replicas"] == 3
    assert "autoscaling_config" not in options


def test_replicas_are_scaled_by_the_policy_of_this_package(application: Any) -> None:
    from ray.serve.config import AutoscalingConfig

    options = application.deployment_options(args(max_replicas=5, target_wait_ms=20, target_busy=0.5))
    config = AutoscalingConfig(**options["autoscaling_config"])
    policy = config.policy.get_policy()(**config.policy.policy_kwargs)
    assert type(policy).__name__ == "QueuedRowsPolicy"
    assert policy._target == (0.02, 0.5)
    assert (config.min_replicas, config.max_replicas) == (1, 5)


def test_what_a_replica_needs_of_a_node_is_asked_for(application: Any) -> None:
    options = application.deployment_options(
        args(num_cpus=4, num_gpus=0.5, memory=2**30, accelerator_type="L4", drain_timeout_s=7, lanes=1, max_batch=8)
    )
    assert options["ray_actor_options"] == {
        "num_cpus": 4.0,
        "num_gpus": 0.5,
        "memory": 2**30,
        "accelerator_type": "L4",
    }
    assert options["graceful_shutdown_timeout_s"] > 7
    assert options["max_ongoing_requests"] == 2 * 8 + 4


def test_a_replica_has_a_method_for_every_rpc_and_for_what_ray_asks(application: Any) -> None:
    replica = application.Replica
    for name in ("Classify", "ModelInfer", "GetModel", "Check"):
        assert inspect.iscoroutinefunction(getattr(replica, name)), name
    for name in ("ClassifyStream", "ModelStreamInfer", "Watch"):
        assert inspect.isasyncgenfunction(getattr(replica, name)), name
    for name in ("Classify", "ClassifyStream"):
        assert list(inspect.signature(getattr(replica, name)).parameters) == ["self", "request", "grpc_context"]
    assert inspect.iscoroutinefunction(replica.check_health)
    assert inspect.iscoroutinefunction(replica.record_autoscaling_stats)


class Core:
    """A `ServerCore` of which a test sets whether it lives, and counts its ends."""

    def __init__(self) -> None:
        self.liveness = SimpleNamespace(is_live=True)
        self.calls: list[str] = []

    async def finish(self) -> None:
        self.calls.append("finish")

    async def close(self) -> None:
        self.calls.append("close")


@pytest.fixture
def replica(application: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A replica without a model."""
    from fuseline.deploy.ray import replica as module

    monkeypatch.setattr(module, "_node", lambda: "10.0.0.1 (abc)")
    its = application.Replica.__new__(application.Replica)
    its._core, its._batcher = Core(), SimpleNamespace(is_stalled=False)
    its._watchdog = Watchdog(lambda: True, lambda: None)
    yield its
    # Else the garbage collection would begin its end.
    its._core = None


async def test_a_replica_whose_lanes_hang_fails_its_health_check(replica: Any) -> None:
    await replica.check_health()
    replica._batcher.is_stalled = True
    with pytest.raises(BackendLostError, match=r"^on node 10.0.0.1 \(abc\): calls of the backend hang"):
        await replica.check_health()
    replica._batcher.is_stalled = False
    replica._core.liveness.is_live = False
    with pytest.raises(BackendLostError):
        await replica.check_health()


async def test_a_replica_ends_once_however_often_it_is_told_to(replica: Any) -> None:
    core = replica._core
    await replica.__del__()
    assert core.calls == ["finish", "close"]
    assert replica.__del__() is None


async def test_a_replica_whose_answers_take_too_long_ends_all_the_same(
    replica: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    core = replica._core

    async def late() -> None:
        raise TimeoutError

    monkeypatch.setattr(core, "finish", late)
    await replica.__del__()
    assert core.calls == ["close"]


def test_a_replica_that_never_began_has_nothing_to_end(application: Any) -> None:
    assert application.Replica.__new__(application.Replica).__del__() is None
