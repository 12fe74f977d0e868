"""The `fuseline` command, and `fuseline classify` against a real server."""

import json
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from fuseline.serve.settings import Settings
from tests.commands import Run
from tests.fakes.colours import LABELS, encoded, plain
from tests.serve.processes import ROOT, finished

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

COMMANDS = ["export", "serve", "classify", "health", "convert", "inspect", "engine", "doctor", "bench"]


@pytest.fixture
def run(run_fuseline: Run, monkeypatch: pytest.MonkeyPatch) -> Run:
    """`run_fuseline` on a terminal of 100 columns."""
    monkeypatch.setenv("COLUMNS", "100")
    return run_fuseline


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder with a picture of each colour, one of them further down, and a file that is none."""
    (tmp_path / "deep" / "er").mkdir(parents=True)
    for name, colour in (("a.png", "red"), ("b.JPG", "green"), ("deep/c.webp", "blue"), ("deep/er/d.jpeg", "dark")):
        suffix = Path(name).suffix[1:].upper().replace("JPG", "JPEG")
        (tmp_path / name).write_bytes(encoded(plain(colour, 16, 16), suffix))
    (tmp_path / "notes.txt").write_text("no picture")
    return tmp_path


def test_classify_prints_a_table_with_bars_most_probable_first(run: Run, live_address: str, pictures: Path) -> None:
    code, stdout, stderr = run("classify", pictures / "a.png", "--top-k", 2, "--address", live_address)
    assert (code, stderr) == (0, "")
    title, first, second = stdout.splitlines()
    assert title == str(pictures / "a.png")
    assert re.fullmatch(r"red +█+\S* +9\d\.\d% *", first)
    assert re.fullmatch(r"\w+ +\S* +\d\.\d% *", second)
    assert first.count("█") > second.count("█")


def test_classify_searches_folders_in_order_and_json_gives_a_line_each(
    run: Run, live_address: str, pictures: Path
) -> None:
    code, stdout, stderr = run("classify", pictures, "--json", "--address", live_address)
    assert (code, stderr) == (0, "")
    lines = [json.loads(line) for line in stdout.splitlines()]
    assert [Path(line["image"]).name for line in lines] == ["a.png", "b.JPG", "c.webp", "d.jpeg"]
    assert [line["predictions"][0]["label"] for line in lines] == list(LABELS)
    assert all(len(line["predictions"]) == len(LABELS) for line in lines), "5 by default, or all if there are fewer"
    assert lines[0]["model"] == "colours"
    assert lines[0]["timing"]["compute_ms"] > 0


def test_a_bad_file_gets_a_line_the_others_are_answered_and_the_exit_code_is_2(
    run: Run, live_address: str, pictures: Path
) -> None:
    paths = [pictures / "nowhere.png", pictures / "a.png", pictures / "notes.txt", pictures / "b.JPG"]
    code, stdout, stderr = run("classify", *paths, "--json", "--address", live_address)
    assert code == 2
    lines = [json.loads(line) for line in stdout.splitlines()]
    assert [line["image"] for line in lines] == [str(path) for path in paths]
    assert ["error" in line for line in lines] == [True, False, True, False]
    missing, text = stderr.splitlines()
    assert re.fullmatch(rf"error: .*{re.escape(str(paths[0]))}.*No such file.*", missing)
    assert re.fullmatch(rf"error: {re.escape(str(paths[2]))}: .*JPEG, PNG or WebP.*", text)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--top-k", 0], "error: --top-k 0: colours has 4 classes"),
        (["--top-k", 5], "error: --top-k 5: colours has 4 classes"),
        (["--model", "cats"], "error: there is no model 'cats' here; served: colours"),
    ],
)
def test_a_wrong_option_is_one_line_and_2(
    run: Run, live_address: str, pictures: Path, arguments: list[object], message: str
) -> None:
    code, stdout, stderr = run("classify", pictures / "a.png", *arguments, "--address", live_address)
    assert (code, stdout) == (2, "")
    assert stderr.startswith(message)
    assert stderr.count("\n") == 1


def test_a_folder_without_images_is_one_line_and_2(run: Run, live_address: str, tmp_path: Path) -> None:
    code, _, stderr = run("classify", tmp_path, "--address", live_address)
    assert code == 2
    assert re.fullmatch(r"error: .* holds no image; looked for \.jpg.*\n", stderr)


def test_no_server_is_one_line_and_2(run: Run, pictures: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{unused.getsockname()[1]}"
        code, stdout, stderr = run("classify", pictures / "a.png", "--address", address)
    assert (code, stdout) == (2, "")
    assert re.fullmatch(rf"error: no server answers at {address} .*`fuseline serve`.*\n", stderr)


def test_a_wrong_serve_flag_or_variable_is_one_line_and_2(
    run: Run, package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, stdout, stderr = run("serve", package, "--max-batch", 0)
    assert (code, stdout) == (2, "")
    assert stderr == "error: --max-batch was given 0: input should be greater than or equal to 1\n"
    monkeypatch.setenv("FUSELINE_BACKEND", "caffe")
    code, _, stderr = run("serve", package)
    assert code == 2
    assert "--backend was given 'caffe'" in stderr


@pytest.mark.parametrize("url", ["tcp://10.0.0.1:9000", "tcp://[fd00::1]:9000", "udp://10.0.0.1:53"])
def test_what_kubernetes_sets_for_services_of_our_name_is_ignored_and_logged(
    run: Run, package: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, url: str
) -> None:
    for name in SERVICE_LINKS:
        monkeypatch.setenv(name, url)
    for name, value in OTHER_SERVICE_VARIABLES.items():
        monkeypatch.setenv(name, value)
    # No machine has this address, so the server ends and says which port it meant to take.
    code, _, stderr = run("serve", package, "--host", "203.0.113.1", "--workers", 1)
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
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    code, _, stderr = run("serve", tmp_path / "nowhere")
    assert code == 2
    assert ("--http-port" if "HTTP" in name else "--port") in stderr
    assert (name if value != "99999" else value) in stderr
    assert "is ignored" not in stderr


def test_serving_no_package_is_one_line_and_2(run: Run, tmp_path: Path) -> None:
    code, stdout, stderr = run("serve", tmp_path / "nowhere", "--port", 0, "--http-port", 0)
    assert (code, stdout) == (2, "")
    assert re.search(r"^error: there is no folder .*nowhere; `fuseline export CHECKPOINT`.*$", stderr, re.MULTILINE)


@pytest.mark.parametrize("module", ["fuseline.command", "fuseline.export.commands.export_command"])
def test_an_extra_that_is_not_installed_is_one_line_and_2(module: str) -> None:
    """In a process where torch can't be imported, as in the serving container."""
    command = ["fuseline", "export"] if module == "fuseline.command" else ["export"]
    code = (
        "import sys\n"
        "sys.modules['torch'] = None\n"
        f"sys.argv = {[*command, 'resnet18.pt']}\n"
        f"from {module} import main\n"
        "main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (2, "error: torch is not installed; pip install 'fuseline[export]'\n")


def test_version_and_unknown_command(run: Run) -> None:
    code, stdout, _ = run("--version")
    assert code == 0
    assert re.fullmatch(r"fuseline \d+\.\d+\.\d+\n", stdout)
    assert run("sing")[0] == 2


def test_help_lists_every_command_and_neither_it_nor_the_client_imports_torch() -> None:
    code = (
        "import sys\n"
        "from fuseline import Client\n"
        "from fuseline.command import main\n"
        "sys.argv = ['fuseline', '--help']\n"
        "try:\n"
        "    main()\n"
        "except SystemExit as end:\n"
        "    assert end.code == 0\n"
        "unwanted = {'torch', 'onnx', 'fuseline.export', 'fuseline.benchmarks', 'onnxruntime', 'openvino'}\n"
        "assert not unwanted & set(sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert re.findall(r"^│ (\w+) {2,}[A-Z]", done.stdout, flags=re.MULTILINE) == COMMANDS


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_is_mounted(run: Run, command: str) -> None:
    code, stdout, _ = run(command, "--help")
    assert code == 0
    assert f"Usage: fuseline {command} " in stdout
