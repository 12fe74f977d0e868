"""What reads other people's bytes, fed with a few broken ones; `make fuzz` goes on for as long as one likes."""

import importlib.util
import os
import random
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz.all_targets import READERS, SERVED, reader_called, target_called
from tests.fuzz.mutation import mutated
from tests.fuzz.servers import Servers
from tests.fuzz.target import bounded
from tests.serve.processes import ROOT

CRASHERS = Path(__file__).parent / "crashers"
FEW = settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True, database=None)
BROKEN = "tests.fuzz.broken_reader:aliases"

needs_atheris = pytest.mark.skipif(
    importlib.util.find_spec("atheris") is None, reason="atheris is not installed; it has wheels for Linux on x86_64"
)


@pytest.fixture(scope="module")
def servers() -> Iterator[Servers]:
    with ExitStack() as stack:
        yield Servers(stack)


@pytest.mark.parametrize("name", READERS)
def test_sound_inputs_and_bombs_are_borne(name: str) -> None:
    target = reader_called(name)
    for seed in target.seeds():
        with bounded():
            target.run(seed)


@pytest.mark.parametrize("name", READERS)
@FEW
@given(st.randoms(use_true_random=False), st.binary(max_size=64))
def test_broken_inputs_end_in_errors_of_the_tree(name: str, source: random.Random, data: bytes) -> None:
    target = reader_called(name)
    seeds = [seed for seed in target.seeds() if len(seed) < 2**20]
    for broken in (mutated(seeds, source), data):
        with bounded():
            target.run(broken)


@pytest.mark.parametrize("name", SERVED)
def test_a_server_answers_broken_requests_as_the_clients_error(servers: Servers, name: str) -> None:
    target, source = target_called(name, servers), random.Random(name)
    seeds = target.seeds()
    for data in [*seeds, b"", *(mutated(seeds, source) for _ in range(30))]:
        target.run(data)
    assert servers.complaints() == []


@pytest.mark.parametrize("path", sorted(CRASHERS.glob("*/*")), ids=lambda path: path.name)
def test_what_once_failed_is_borne(servers: Servers, path: Path) -> None:
    with bounded():
        target_called(path.parent.name.replace("-", " "), servers).run(path.read_bytes())


@pytest.mark.parametrize("by", [pytest.param("coverage", marks=needs_atheris), "chance"])
def test_an_input_that_fails_is_kept_and_the_command_that_gives_it_again_fails_too(tmp_path: Path, by: str) -> None:
    code, said = _fuzz(tmp_path, "--by", by, "--seconds", "60", BROKEN)
    assert code == 1, said
    (kept,) = (path for path in (tmp_path / "build/fuzz").iterdir() if path.is_file())
    again = re.search(r"fails; again by: python -m tests.fuzz (.*)$", said, re.MULTILINE)
    assert again is not None, said
    assert again[1] == f"--input build/fuzz/{kept.name} '{BROKEN}'"
    code, said = _fuzz(tmp_path, "--input", str(kept), BROKEN)
    assert (code, "this reader bears no split" in said) == (1, True)
    kept.write_bytes(b"a=b")
    assert _fuzz(tmp_path, "--input", str(kept), BROKEN)[0] == 0


@pytest.mark.parametrize("by", [pytest.param("coverage", marks=needs_atheris), "chance"])
def test_an_input_by_which_the_process_dies_is_kept(tmp_path: Path, by: str) -> None:
    code, said = _fuzz(tmp_path, "--by", by, "--seconds", "60", "tests.fuzz.broken_reader:deadly")
    assert code != 0, said
    (kept,) = (path for path in (tmp_path / "build/fuzz").iterdir() if path.is_file())
    assert kept.read_bytes()


@needs_atheris
@pytest.mark.slow  # make fuzz leads every target so
@pytest.mark.parametrize("name", ["safetensors", "control over HTTP"])
def test_a_target_that_is_led_by_coverage_starts_soon_and_ends_well(tmp_path: Path, name: str) -> None:
    code, said = _fuzz(tmp_path, "--by", "coverage", "--seconds", "1", name)
    assert code == 0, said
    # What reads is instrumented, and what it reads with, such as torch's two thousand modules, is not.
    assert 20 < int(re.findall(r"(\d+) modules instrumented", said)[0]) < 400
    assert int(re.findall(r"new_units_added: *(\d+)", said)[0]) > 0


def _fuzz(folder: Path, *arguments: str) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-m", "tests.fuzz", *arguments],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=200,
        check=False,
    )
    return done.returncode, done.stdout
