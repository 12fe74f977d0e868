"""Graphs in memory run as they will be served."""

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest

from fuseline.export.fp16 import layer_ranges
from fuseline.export.graph import runtimes
from fuseline.export.graph.runtimes import onnxruntime_logits, run_batches
from fuseline.export.int8 import int8_graph
from fuseline.serve.errors import BackendError
from tests.export.int8.networks import Subject, subject
from tests.export.resnets import tiny_network


@pytest.fixture(scope="module")
def own() -> Subject:
    return subject(tiny_network(), images=40)


def calibrate_fp16(own: Subject) -> object:
    return layer_ranges.calibrate(own.model, own.calibration[:4])


def calibrate_int8(own: Subject) -> object:
    return int8_graph.calibrate(own.model, own.calibration, own.held_out, own.eager_held_out)


@pytest.mark.parametrize("calibrate", [calibrate_fp16, calibrate_int8])
def test_calibration_runs_graphs_in_the_sessions_that_serve(
    calibrate: Callable[[Subject], object], own: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fuseline.serve.backends import onnxruntime

    def refused(graph: bytes, **options: Any) -> Any:
        raise RuntimeError("opened as for serving")

    monkeypatch.setattr(onnxruntime, "open_session", refused)
    with pytest.raises(BackendError, match="opened as for serving"):
        calibrate(own)


def test_many_batches_give_the_logits_of_one_and_tell_how_far_they_are(
    own: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = onnxruntime_logits(own.model, own.held_out[:10])
    monkeypatch.setattr(runtimes, "_MAX_BATCH_ROWS", 4)
    told: list[float] = []
    parts = [logits for (logits,) in run_batches(own.model, own.held_out[:10], on_progress=told.append)]
    assert [len(part) for part in parts] == [4, 4, 2]
    np.testing.assert_allclose(np.concatenate(parts), whole, rtol=1e-5, atol=1e-6)
    assert told == [0.4, 0.8, 1.0]


def test_a_graph_that_the_runtime_refuses_or_that_fails_in_it_is_a_backend_error(own: Subject) -> None:
    with pytest.raises(BackendError, match="can't load the graph to calibrate"):
        onnxruntime_logits(onnx.ModelProto(), own.held_out[:1])
    with pytest.raises(BackendError, match="failed on calibration images"):
        onnxruntime_logits(own.model, own.held_out[:1, :8])
