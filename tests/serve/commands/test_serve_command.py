"""`fuseline serve`: flags, variables and packages that it refuses, and what Kubernetes sets."""

import re
from pathlib import Path

import pytest

from fuseline.serve.settings import Settings
from tests.commands import Run
from tests.serve.processes import finished

SERVICE_LINKS = ("FUSELINE_PORT", "FUSELINE_HTTP_PORT")
OTHER_SERVICE_VARIABLES = {
    "FUSELINE_SERVICE_HOST": "10.0.0.1",
    "FUSELINE_SERVICE_PORT": "9000",
    "FUSELINE_SERVICE_PORT_GRPC": "9000",
    "FUSELINE_PORT_9000_TCP": "tcp://10.0.0.1:9000",
    "FUSELINE_PORT_9000_TCP_PROTO": "tcp",
    "FUSELINE_PORT_9000_TCP_PORT": "9000",
    "FUSELINE_PORT_9000_TCP_ADDR": "10.0.0.1",
    "FUSELINE_MAX_BATCH_SERVICE_HOST": "10.0.0.1",
}


def test_a_wrong_serve_flag_or_variable_is_one_line_and_2(
    run_fuseline: Run, package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, stdout, stderr = run_fuseline("serve", package, "--max-batch", 0)
    assert (code, stdout) == (2, "")
    assert stderr == "error: --max-batch was given 0: input should be greater than or equal to 1\n"
    monkeypatch.setenv("FUSELINE_BACKEND", "caffe")
    code, _, stderr = run_fuseline("serve", package)
    assert code == 2
    assert "--backend was given 'caffe'" in stderr


@pytest.mark.parametrize("url", ["tcp://10.0.0.1:9000", "tcp://[fd00::1]:9000", "udp://10.0.0.1:53"])
def test_what_kubernetes_sets_for_services_of_our_name_is_ignored_and_logged(
    run_fuseline: Run, package: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, url: str
) -> None:
    for name in SERVICE_LINKS:
        monkeypatch.setenv(name, url)
    for name, value in OTHER_SERVICE_VARIABLES.items():
        monkeypatch.setenv(name, value)
    # No machine has this address, so the server ends and says which port it meant to take.
    code, _, stderr = run_fuseline("serve", package, "--host", "203.0.113.1", "--workers", 1)
    assert code == 2
    assert "203.0.113.1:8001 (" in stderr
    for name in SERVICE_LINKS:
        assert caplog.text.count(f"{name}={url} is ignored: Kubernetes sets it") == 1
    assert caplog.text.count(" is ignored") == len(SERVICE_LINKS)


def test_the_module_ignores_them_too(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in SERVICE_LINKS:
        monkeypatch.setenv(name, "tcp://10.0.0.1:9000")
    _, _, stderr = finished(package, "--host", "203.0.113.1")
    assert "203.0.113.1:8001 (" in stderr
    assert all(f"{name}=tcp://10.0.0.1:9000 is ignored" in stderr for name in SERVICE_LINKS)


def test_every_number_that_a_service_could_make_a_url_of_is_known() -> None:
    """Flags whose variable Kubernetes may set are those whose name ends in PORT."""
    numbers = {f"FUSELINE_{name.upper()}" for name in Settings.model_fields if name.endswith("port")}
    assert numbers == set(SERVICE_LINKS)
    shapes = r"_SERVICE_HOST$|_SERVICE_PORT(_\w+)?$|_PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?$"
    assert not [name for name in Settings.model_fields if re.search(shapes, f"FUSELINE_{name.upper()}")]


@pytest.mark.parametrize("name", ["FUSELINE_PORT", "FUSELINE_HTTP_PORT"])
@pytest.mark.parametrize("value", ["80o2", "tcp", "10.0.0.1:8001", "tcp://", "http://10.0.0.1:80", "99999"])
def test_every_other_wrong_port_variable_is_still_refused(
    run_fuseline: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    code, _, stderr = run_fuseline("serve", tmp_path / "nowhere")
    assert code == 2
    assert ("--http-port" if "HTTP" in name else "--port") in stderr
    assert (name if value != "99999" else value) in stderr
    assert "is ignored" not in stderr


def test_serving_no_package_is_one_line_and_2(run_fuseline: Run, tmp_path: Path) -> None:
    code, stdout, stderr = run_fuseline("serve", tmp_path / "nowhere", "--port", 0, "--http-port", 0)
    assert (code, stdout) == (2, "")
    assert re.search(r"^error: there is no folder .*nowhere; `fuseline export CHECKPOINT`.*$", stderr, re.MULTILINE)
