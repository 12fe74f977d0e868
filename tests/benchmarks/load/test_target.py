from pathlib import Path

import pytest

from fuseline.benchmarks.harness.server_process import ServerProcess
from fuseline.benchmarks.harness.subject import Subject
from fuseline.benchmarks.load.target import connect, connect_open_inference, expect_logits_of
from fuseline.benchmarks.serving.measure import measure_open, measure_serving
from fuseline.serve.errors import InputError, VerificationError
from tests.benchmarks.load.foreign_server import foreign_server
from tests.fakes.colours import expected_logits, write_colours_package


def test_fuseline_is_measured_by_each_of_its_protocols(colours_server: ServerProcess, colours: Path) -> None:
    address = colours_server.address
    for target in (connect(address), connect(address, stream=True), connect_open_inference(address)):
        vouched = expect_logits_of(Subject("colours", colours, None), target)
        closed = measure_serving(vouched, concurrency=3, seconds=0.2, burn_in_s=0.05, images_per_request=2)
        opened = measure_open(vouched, rate_per_s=40, seconds=0.3, burn_in_s=0.05, images_per_request=2)
        for figures in (closed, opened):
            assert not figures.errors, target.protocol.name
            assert figures.images_per_s == pytest.approx(2 * figures.requests_per_s)
        assert opened.requests == 12


@pytest.mark.parametrize("as_typed_contents", [False, True])
def test_a_server_that_is_not_fuseline_is_measured(as_typed_contents: bool) -> None:
    with foreign_server(as_typed_contents=as_typed_contents) as address:
        target = connect_open_inference(address, model="any", output_name="y")
        assert target.expected == pytest.approx(expected_logits(target.pixels), abs=1e-4)
        assert (target.model.name, target.model.version, target.model.backend) == ("any", "7", "abacus")
        figures = measure_serving(target, concurrency=2, seconds=0.2, burn_in_s=0.05, images_per_request=3)
    assert figures.images_per_s > 0
    assert figures.batches is None


def test_a_float_input_is_normalised_as_the_package_says(tmp_path: Path) -> None:
    subject = Subject("colours", write_colours_package(tmp_path / "colours"), None)
    with foreign_server() as address:
        target = connect_open_inference(address, model="any", output_name="y", package=subject)
        assert expect_logits_of(subject, target).expected == pytest.approx(target.expected, abs=1e-4)
    with foreign_server(mean=0.5, std=0.25) as address:
        target = connect_open_inference(address, model="any", output_name="y", package=subject)
        with pytest.raises(VerificationError, match="other answers than expected"):
            expect_logits_of(subject, target)


def test_what_can_not_be_chosen_must_be_named() -> None:
    with foreign_server() as address:
        with pytest.raises(InputError, match="UNIMPLEMENTED.*--model"):
            connect_open_inference(address)
        with pytest.raises(InputError, match="outputs features, y: .*--output-name"):
            connect_open_inference(address, model="any")
        with pytest.raises(InputError, match="inputs x: none is called image"):
            connect_open_inference(address, model="any", output_name="y", input_name="image")


@pytest.mark.parametrize("shape", [(-1, 3, -1, -1), (-1, 192), (8, 8, 3), (-1, 4, 8, 8)])
def test_a_model_that_takes_no_pictures(shape: tuple[int, ...]) -> None:
    with foreign_server(input_shape=shape) as address, pytest.raises(InputError, match="pictures go into"):
        connect_open_inference(address, model="any", output_name="y")


def test_nobody_speaks_the_protocol_there() -> None:
    with pytest.raises(InputError, match="UNAVAILABLE.*Open Inference Protocol"):
        connect_open_inference("127.0.0.1:9", model="any")
