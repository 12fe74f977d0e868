"""Commands print on terminals and into pipes of any encoding."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from fuseline.export.progress import ConsoleProgress
from fuseline.serve.command_line import run_command_line
from tests.fakes.colours import encoded, plain, write_colours_package
from tests.serve.processes import ROOT

LABELS = ("红", "grün", "blue\N{BUTTERFLY}", "dark")
ENCODINGS = {
    "latin-1": {"PYTHONIOENCODING": "latin-1"},
    "ascii": {"PYTHONIOENCODING": "ascii"},
    "strict": {"PYTHONIOENCODING": "utf-8:strict"},
    "C locale": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
}


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The colours model with labels that few encodings have."""
    return write_colours_package(tmp_path_factory.mktemp("labels") / "colours", labels=LABELS)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files whose names are in UTF-8, in no encoding at all, and beyond the basic plane."""
    folder = tmp_path_factory.mktemp("pictures")
    for name in ("ü.png", os.fsdecode(b"\xe9\xff.png"), "\N{BUTTERFLY}红.png"):
        (folder / name).write_bytes(encoded(plain("red")))
    return folder


def fuseline(environment: dict[str, str], *arguments: object) -> subprocess.CompletedProcess[bytes]:
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONIOENCODING", "PYTHONUTF8")}
    return subprocess.run(
        [sys.executable, "-m", "fuseline", *map(str, arguments)],
        cwd=ROOT,
        env=kept | environment,
        capture_output=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize("environment", ENCODINGS.values(), ids=ENCODINGS)
def test_a_table_is_printed_in_any_encoding(live_address: str, pictures: Path, environment: dict[str, str]) -> None:
    done = fuseline(environment, "classify", pictures, "--address", live_address)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.count(b".png") == 3
    if environment != ENCODINGS["strict"]:
        assert b"###" in done.stdout, "bars are drawn with what every encoding has"
        assert rb"\u7ea2" in done.stdout


@pytest.mark.parametrize("name", ["latin-1", "C locale"])
def test_json_is_valid_and_tells_the_very_names(live_address: str, pictures: Path, name: str) -> None:
    done = fuseline(ENCODINGS[name], "classify", pictures, "--json", "--address", live_address)
    assert (done.returncode, done.stderr) == (0, b"")
    found = [json.loads(line) for line in done.stdout.decode("ascii").splitlines()]
    if name != "C locale":  # there a name is decoded as ASCII, each byte beyond it on its own
        assert {Path(line["image"]) for line in found} == set(pictures.iterdir())
    assert {prediction["label"] for line in found for prediction in line["predictions"]} == set(LABELS)


@pytest.mark.parametrize("command", ["export", "serve", "classify"])
def test_an_error_names_a_file_in_any_encoding(tmp_path: Path, command: str) -> None:
    done = fuseline(ENCODINGS["ascii"], command, tmp_path / "红\udce9.pt")
    assert done.returncode == 2
    assert done.stderr.startswith(b"error: ")
    assert b"Traceback" not in done.stderr


def test_a_live_display_is_drawn_in_any_encoding(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(written, "ascii", errors="strict", write_through=True))

    def work() -> None:
        progress = ConsoleProgress(Console(file=sys.stderr, force_terminal=True, color_system=None))
        with progress.step("Reading ü.pt") as step:
            step.advance_to(0.5)
            step.done("3 × 4 tensors")
        progress.warn("of 红")

    run_command_line(work)
    assert b"+ Reading \\xfc.pt: 3 x 4 tensors" in written.getvalue()
    assert b"warning: of \\u7ea2" in written.getvalue()
