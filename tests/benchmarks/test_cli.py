import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from fuseline.benchmarks.harness.cpu_time import family_stats
from fuseline.benchmarks.harness.results import check_writable, command_line
from fuseline.benchmarks.harness.server_process import ServerProcess
from fuseline.serve.backends import BACKENDS
from fuseline.serve.errors import InputError
from tests.commands import exit_code
from tests.serve.processes import ROOT, lives

BAD_INPUT = [
    (["engines", "no-such-thing"], "neither a model package nor a checkpoint"),
    (["engines", "resnet18", "--batch", "1,x"], "--batch '1,x': numbers from 1 to 4096"),
    (["engines", "resnet18", "--batch", "0"], "--batch '0'"),
    (["engines", "resnet18", "--batch", "²"], "--batch '²'"),
    (["engines", "resnet18", "--checkpoint", "a.pt"], "--checkpoint goes with a model package"),
    (["engines", "resnet18", "--repeats", "0"], "repeats"),
    (["engines", "resnet18", "--seconds", "nan"], "seconds"),
    (["engines", "resnet18", "--json", "/dev/null/x.json"], "--json /dev/null/x.json can't be written"),
    (["engines"], "PACKAGE|CHECKPOINT|NAME"),
    (["serve", "127.0.0.1:9"], "127.0.0.1:9 gave no answer"),
    (["serve", "127.0.0.1:9", "--concurrency", ""], "--concurrency ''"),
    (["serve", "127.0.0.1:9", "--concurrency", "1,100000"], "--concurrency '1,100000'"),
    (["serve", "127.0.0.1:9", "--rate", "10,x"], "--rate '10,x': requests a second above 0"),
    (["serve", "127.0.0.1:9", "--rate", "0"], "--rate '0'"),
    (["serve", "127.0.0.1:9", "--protocol", "carrier-pigeon"], "is none of classify, stream, open-inference"),
    (["serve", "127.0.0.1:9", "--protocol", "classify,stream"], "one of classify, stream, open-inference"),
    (["serve", "127.0.0.1:9", "--protocol", "open-inference"], "a server that speaks the Open Inference Protocol"),
    (["serve", "127.0.0.1:9", "--precision", "fp7"], "fp7 is none of fp32"),
    (["serve", "127.0.0.1:9", "--model", "net"], "go with --protocol open-inference"),
    (["serve", "127.0.0.1:9", "--rate", "9", "--send-deadline"], "--send-deadline needs --deadline-ms"),
    (["loadgen", "127.0.0.1:9", "--scenario", "Offline,Nowhere"], "Nowhere is none of SingleStream, Offline, Server"),
    (["loadgen", "127.0.0.1:9"], "127.0.0.1:9 gave no answer"),
    (["report", "no-such.json", "--out", "report"], "no-such.json can't be read as JSON"),
    (["report", "--out", "report"], "RESULT.json"),
    (["headline", "no-such-thing"], "neither a model package nor a checkpoint"),
    (["headline", "--backend", "openvino,abacus"], f"abacus is none of {', '.join(BACKENDS)}"),
    (["headline", "--precision", "fp32,fp7"], "fp7 is none of fp32"),
    (["headline", "--precision", "fp16"], "--precision fp16: none of onnxruntime, openvino computes in it"),
    (["peers", "--case", "unary,duel"], "duel is none of unary, unary-224, stream"),
    (["peers", "--rounds", "0"], "rounds"),
    (["peers", "--case", "unary", "--chart", "x.png"], "--chart x.png draws the case overload, which --case unary"),
    (["peers", "--chart", "x.gif"], "--chart x.gif: a name that ends in .png or .svg was expected"),
    (["peers", "--case", "overload", "--chart", "/dev/null/x.svg"], "--chart /dev/null/x.svg can't be written"),
    (["compare"], "BASE"),
    (["compare", "main", "--case", "server,kitchen"], "kitchen is none of batcher, decode, server"),
    (["plan", "no-such-thing"], "neither a model package nor a checkpoint"),
    (["plan", "--minutes", "0"], "minutes"),
    (["plan", "--backend", "abacus"], "abacus is none of auto, "),
    (["nonsense"], "nonsense"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD_INPUT, ids=[" ".join(arguments) for arguments, _ in BAD_INPUT])
def test_bad_input_is_told_with_exit_code_2(
    arguments: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert exit_code("fuseline", "bench", *arguments) == 2
    said = capsys.readouterr().err
    assert message in said
    assert "Traceback" not in said
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_the_headlines_former_name_still_works_and_is_not_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code("fuseline", "bench", "spine", "no-such-thing") == 2
    assert "neither a model package nor a checkpoint" in capsys.readouterr().err
    assert exit_code("fuseline", "bench", "--help") == 0
    listed = capsys.readouterr().out
    assert "headline" in listed
    assert "spine" not in listed


def test_a_package_that_is_no_package(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text("{}")
    assert exit_code("fuseline", "bench", "engines", tmp_path) == 2
    assert "is not a valid manifest" in capsys.readouterr().err


def test_serve_prints_a_table_and_writes_every_figure(
    colours_server: ServerProcess,
    colours: Path,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    json_path = tmp_path / "new" / "serve.json"
    flags = ["--concurrency", "2", "--seconds", "0.2", "--package", colours, "--server-pid", colours_server.pid]
    assert exit_code("fuseline", "bench", "serve", colours_server.address, *flags, "--json", json_path) == 0

    out = capsys.readouterr().out
    assert "colours on onnxruntime fp32" in out
    assert "fuseline bench serve ADDRESS --concurrency 2" in out
    written = json.loads(json_path.read_text())
    assert written["closed_loop"][0]["requests_per_s"] > 0
    assert written["machine"]["versions"]["grpcio"]
    assert str(tmp_path) not in json_path.read_text()


@pytest.mark.skipif(sys.version_info >= (3, 14), reason="mlcommons-loadgen has no wheels for Python 3.14")
def test_what_serve_and_loadgen_measured_becomes_a_page(
    colours_server: ServerProcess, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    served, held, out = tmp_path / "serve.json", tmp_path / "loadgen.json", tmp_path / "report"
    flags = ["--rate", "80.5", "--seconds", "0.3", "--protocol", "stream", "--deadline-ms", "50"]
    assert exit_code("fuseline", "bench", "serve", colours_server.address, *flags, "--json", served) == 0
    flags = ["--scenario", "SingleStream", "--rounds", "1", "--seconds", "0.2", "--json", held]
    assert exit_code("fuseline", "bench", "loadgen", colours_server.address, *flags) == 0
    assert exit_code("fuseline", "bench", "report", served, held, "--out", out) == 0

    assert "sent late, p99 ms" in capsys.readouterr().out
    points = json.loads(served.read_text())["open_loop"]
    assert [point["rate_per_s"] for point in points] == [80.5]
    assert all(point["goodput_per_s"] <= point["requests_per_s"] for point in points)
    assert "fuseline bench serve ADDRESS --rate 80.5" in (out / "report.html").read_text()


def test_the_command_that_is_noted_names_no_folder() -> None:
    noted = command_line(
        "engines", "/home/me/secret/net.pt", checkpoint=None, batch="1,8", json=Path("/home/me/x.json")
    )
    assert noted == "fuseline bench engines net.pt --batch 1,8 --json x.json"


def test_an_older_result_is_kept_until_there_is_a_new_one(tmp_path: Path) -> None:
    old = tmp_path / "old.json"
    old.write_text("{}")
    check_writable(old)
    assert old.read_text() == "{}"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_must_not_be_written(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(InputError, match="can't be written"):
        check_writable(tmp_path / "x.json")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_sigterm_leaves_no_process_and_no_file_behind(tmp_path: Path) -> None:
    flags = ["--peer", "none", "--case", "unary", "--rounds", "50", "--seconds", "1"]
    command = [sys.executable, "-m", "benchmarks", "peers", *flags]
    with subprocess.Popen(
        command, cwd=ROOT, stderr=subprocess.PIPE, text=True, env=os.environ | {"TMPDIR": str(tmp_path)}
    ) as process:
        assert process.stderr is not None
        started = []
        try:
            # Not while a load generator starts: of one whose parent goes just then multiprocessing prints a traceback.
            assert next(line for line in process.stderr if line.startswith("round 1") and "bare backend" in line)
            started = sorted(family_stats(process.pid).keys() - {process.pid})
            process.terminate()
            process.wait(60)
            # multiprocessing's own process ends a moment after the one that it belongs to.
            deadline = time.monotonic() + 10
            while (remaining := [*filter(lives, started)]) and time.monotonic() < deadline:
                time.sleep(0.01)
            assert not remaining
        finally:
            for pid in (process.pid, *filter(lives, started)):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        said = process.stderr.read()
    assert process.returncode == 128 + signal.SIGTERM, said
    assert "Traceback" not in said
    # The server, the echo, the bare engine at least.
    assert len(started) >= 3
    assert not list(tmp_path.iterdir())
