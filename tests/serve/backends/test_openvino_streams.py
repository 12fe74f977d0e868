from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import pytest

from serve.backends import open_backend, openvino_streams
from serve.backends.openvino import OpenVinoBackend
from serve.backends.openvino_streams import OpenVinoStreams
from serve.cpu import usable_cpus
from serve.errors import BackendError
from serve.model_package import load_package
from tests.serve.colours import expected_logits, noise, write_colours_package

pytestmark = pytest.mark.skipif(usable_cpus() < 2, reason="one core has one stream")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_colours_package(tmp_path_factory.mktemp("packages") / "colours")


def compiled(folder: Path, streams: int) -> Any:
    core = ov.Core()
    hints = {"PERFORMANCE_HINT": "THROUGHPUT", "INFERENCE_PRECISION_HINT": "f32"}
    hints |= {"NUM_STREAMS": str(streams), "INFERENCE_NUM_THREADS": streams}
    return core.compile_model(core.read_model(folder / "model.onnx"), "CPU", hints)


def opened(folder: Path, streams: int = 2) -> OpenVinoStreams:
    return OpenVinoStreams(compiled(folder, streams), load_package(folder).manifest.input.row_shape, 64)


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """However little a piece takes, as if the network were a large one."""
    monkeypatch.setattr(openvino_streams, "_LEAST_PIECE_S", 0.0)


@pytest.mark.usefixtures("small_pieces")
def test_logits_of_a_batch_in_pieces_are_those_of_its_rows_in_order(folder: Path) -> None:
    split = opened(folder)
    sizes = [rows for rows in range(1, 41) if split.pieces(rows)]
    assert sizes == list(range(4, 41))
    for rows in sizes:
        pixels = noise(rows)
        np.testing.assert_allclose(split.infer(pixels), expected_logits(pixels), rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("small_pieces")
def test_there_are_at_most_four_pieces_a_stream_of_two_rows_at_least_or_none(folder: Path) -> None:
    split = opened(folder)
    assert [split.pieces(rows) for rows in (1, 2, 3, 4, 5, 8, 16, 17, 64)] == [0, 0, 0, 2, 2, 4, 8, 8, 8]


@pytest.mark.usefixtures("small_pieces")
def test_one_stream_gets_whole_batches(folder: Path) -> None:
    assert opened(folder, streams=1).pieces(64) == 0


def test_a_batch_that_is_computed_at_once_is_not_split(folder: Path) -> None:
    assert opened(folder).pieces(16) == 0


@pytest.mark.usefixtures("small_pieces")
def test_a_batch_that_fails_leaves_the_next_one_sound(folder: Path) -> None:
    split = opened(folder)
    with pytest.raises(RuntimeError):
        split.infer(np.zeros((8, 3, 3, 3), np.uint8))
    pixels = noise(8)
    np.testing.assert_allclose(split.infer(pixels), expected_logits(pixels), rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("small_pieces")
def test_the_backend_answers_every_bucket_alike_whether_in_pieces_or_not(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_pieces = []
    infer = OpenVinoStreams.infer

    def watched(self: OpenVinoStreams, pixels: Any) -> Any:
        in_pieces.append(len(pixels))
        return infer(self, pixels)

    monkeypatch.setattr(OpenVinoStreams, "infer", watched)
    backend, _ = open_backend(load_package(folder), backend="openvino", buckets=(1, 16), threads=2)
    assert isinstance(backend, OpenVinoBackend)
    for rows in (1, 16):
        pixels = noise(rows)
        np.testing.assert_allclose(backend.infer(pixels), expected_logits(pixels), rtol=1e-5, atol=1e-5)
    assert in_pieces == [16]
    with pytest.raises(BackendError, match="OpenVINO failed on"):
        backend.infer(np.zeros((16, 3, 3, 3), np.uint8))
    backend.close()


def test_one_thread_computes_whole_batches(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(OpenVinoStreams, "infer", lambda *_: pytest.fail("in pieces"))
    backend, _ = open_backend(load_package(folder), backend="openvino", buckets=(64,), threads=1)
    pixels = noise(64)
    np.testing.assert_allclose(backend.infer(pixels), expected_logits(pixels), rtol=1e-5, atol=1e-5)
    backend.close()
