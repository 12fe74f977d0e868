"""Triton's extension `model_repository`, by the unmodified tritonclient over gRPC and HTTP."""

import json
import subprocess
from typing import Any

import pytest

from tests.serve.clients.conftest import SCRIPTS, refusals_amiss
from tests.serve.model_control.repositories import put
from tests.serve.processes import FAST, ROOT, free_port, server_process


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the script saw."""
    root = tmp_path_factory.mktemp("repository")
    put(root, "cats", 1)
    put(root, "cats", 2)
    (put(root, "broken", 1) / "model.onnx").write_bytes(b"no graph")
    flags = ("--model-repository", root, "--model-control-mode", "explicit")
    with server_process(*flags, *FAST, "--http-port", free_port()) as server:
        done = subprocess.run(
            [
                ROOT / ".venv-tritonclient/bin/python",
                SCRIPTS / "triton_repository_calls.py",
                server.address,
                server.http_address,
            ],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.fixture(params=["grpc", "http"])
def door(request: pytest.FixtureRequest, seen: dict[str, Any]) -> dict[str, Any]:
    """What the script saw at one door."""
    found: dict[str, Any] = seen[request.param]
    return found


def states(index: list[dict[str, str]]) -> dict[tuple[str, str], str]:
    return {(line["name"], line.get("version", "")): line["state"] for line in index}


def test_a_model_is_loaded_ready_listed_and_unloaded(door: dict[str, Any]) -> None:
    assert states(door["index before"])["cats", ""] == "UNAVAILABLE"
    assert door["ready before"] is False
    assert door["load"] is None
    assert door["ready"] == [True, True, False]
    assert states(door["index"])["cats", "2"] == "READY"
    assert door["unload"] is None
    assert door["ready after"] is False
    assert states(door["index after"])["cats", ""] == "UNAVAILABLE"


def test_overrides_unknown_models_and_broken_packages_are_refused_with_the_reason(door: dict[str, Any]) -> None:
    mistakes = ("with config", "with files", "unknown", "broken")
    assert (
        refusals_amiss(
            {mistake: door[mistake] for mistake in mistakes},
            {
                "with config": (r"StatusCode\.INVALID_ARGUMENT|400", "'config' can't override"),
                "with files": (r"StatusCode\.INVALID_ARGUMENT|400", "can't override"),
                "unknown": (r"StatusCode\.NOT_FOUND|404", "no model 'birds'"),
                "broken": (r"StatusCode\.FAILED_PRECONDITION|400", r"failed to load 'broken'.*model\.onnx has 8 bytes"),
            },
        )
        == {}
    )
    assert states(door["index after"])["broken", "1"] == "UNAVAILABLE"
