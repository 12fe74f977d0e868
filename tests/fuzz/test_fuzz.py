"""What reads other people's bytes, fed with a few broken ones; `make fuzz` goes on for as long as one likes."""

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fakes.colours import write_colours_package
from tests.fuzz.mutation import mutated
from tests.fuzz.served import served_targets
from tests.fuzz.targets import TARGETS, Target, bounded
from tests.serve.processes import FAST, free_port, server_process

SERVED = (
    "classify messages",
    "inference messages",
    "pictures over HTTP",
    "forms",
    "JSON over HTTP",
    "binary tensors over HTTP",
)
CRASHERS = Path(__file__).parent / "crashers"
FEW = settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True, database=None)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Target]]:
    package = write_colours_package(tmp_path_factory.mktemp("packages") / "colours")
    with (
        server_process(package, *FAST, "--http-port", free_port()) as server,
        served_targets(server.address, str(server.http_address)) as targets,
    ):
        yield targets


@pytest.mark.parametrize("name", TARGETS)
def test_sound_inputs_and_bombs_are_borne(name: str) -> None:
    for seed in TARGETS[name].seeds():
        with bounded():
            TARGETS[name].run(seed)


@pytest.mark.parametrize("name", TARGETS)
@FEW
@given(st.randoms(use_true_random=False), st.binary(max_size=64))
def test_broken_inputs_end_in_errors_of_the_tree(name: str, source: random.Random, data: bytes) -> None:
    target = TARGETS[name]
    seeds = [seed for seed in target.seeds() if len(seed) < 2**20]
    for broken in (mutated(seeds, source), data):
        with bounded():
            target.run(broken)


@pytest.mark.parametrize("name", SERVED)
def test_a_server_answers_broken_requests_as_the_clients_error(served: dict[str, Target], name: str) -> None:
    target, source = served[name], random.Random(name)
    seeds = target.seeds()
    for data in [*seeds, b"", *(mutated(seeds, source) for _ in range(30))]:
        target.run(data)


@pytest.mark.parametrize("path", sorted(CRASHERS.glob("*/*")), ids=lambda path: path.name)
def test_what_once_failed_is_borne(served: dict[str, Target], path: Path) -> None:
    with bounded():
        (TARGETS | served)[path.parent.name.replace("-", " ")].run(path.read_bytes())
