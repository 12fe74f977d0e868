"""`fuseline models` against real servers, over gRPC and HTTP."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.commands import Run
from tests.serve.model_control.repositories import put
from tests.serve.processes import FAST, ServerProcess, free_port, server_process


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("repository")
    put(root, "cats", 1)
    (put(root, "broken", 1) / "model.onnx").write_bytes(b"no graph")
    return root


@pytest.fixture(scope="module")
def server(root: Path) -> Iterator[ServerProcess]:
    flags = ("--model-repository", root, "--model-control-mode", "explicit")
    with server_process(*flags, *FAST, "--http-port", free_port()) as server:
        yield server


@pytest.mark.parametrize("door", ["grpc", "http"])
def test_models_are_listed_loaded_and_unloaded(run_fuseline: Run, server: ServerProcess, door: str) -> None:
    address = server.address if door == "grpc" else f"http://{server.http_address}"
    assert run_fuseline("models", "load", "cats", "--address", address)[:2] == (0, "cats: loaded\n")
    code, stdout, _ = run_fuseline("models", "list", "--address", address, "--json")
    lines = [json.loads(line) for line in stdout.splitlines()]
    assert code == 0
    assert {"name": "cats", "version": "1", "state": "READY", "reason": ""} in lines
    code, _, stderr = run_fuseline("models", "load", "broken", "--address", address)
    assert code == 1
    assert "failed to load 'broken'" in stderr
    assert "model.onnx has 8 bytes" in stderr
    code, stdout, _ = run_fuseline("models", "list", "--address", address)
    assert code == 0
    assert "broken  1  UNAVAILABLE  " in stdout
    assert run_fuseline("models", "load", "birds", "--address", address).exit_code == 2
    assert run_fuseline("models", "unload", "cats", "--address", address)[:2] == (0, "cats: unloaded\n")
    assert "cats    -  UNAVAILABLE" in run_fuseline("models", "list", "--address", address).stdout


def test_without_a_server_it_is_one_line_and_2(run_fuseline: Run) -> None:
    code, _, stderr = run_fuseline("models", "list", "--address", f"127.0.0.1:{free_port()}")
    assert code == 2
    assert "no server answers" in stderr


def test_serving_nothing_and_a_wrong_setting_of_a_model_are_one_line_and_2(run_fuseline: Run, root: Path) -> None:
    for flags, message in (
        ((), "nothing is to be served: name a PACKAGE"),
        (("--model-control-mode", "poll"), "--model-control-mode poll needs a --model-repository"),
        (("--model-repository", root, "--load-model", "cats"), "--load-model is for --model-control-mode explicit"),
        (("--model-repository", root, "--set", "cats.max_bacth=4"), "'max_bacth' is no setting of a model; there are"),
        (("--model-repository", root, "--set", "cats.max_batch=0"), "max_batch was given '0': input should be greater"),
        (("--model-repository", root, "--set", "max_batch=4"), "expected MODEL.SETTING=VALUE"),
        (("--model-repository", root, "--version-policy", "cats=newest"), "expected latest, latest:COUNT, all or"),
    ):
        code, _, stderr = run_fuseline("serve", *flags)
        assert code == 2, flags
        assert message in stderr
        assert stderr.count("\n") == 1
