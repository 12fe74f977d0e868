"""The whole way: the best calibrator is kept, and the real ResNet-20 stays as right as it was."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fuseline.export.eager import eager_logits
from fuseline.export.graph.runtimes import int8_logits_by_runtime, serialised
from fuseline.export.int8 import int8_graph
from fuseline.export.int8.calibrators import CALIBRATORS, Range
from fuseline.export.int8.int8_graph import Int8Graph, calibrate, int8_from_fp32
from fuseline.export.loading.loading import NetworkSource, network_of, read_source
from tests.export.int8.networks import NORMALIZATION, Subject, fp32_graph

CPU_RUNTIMES = ("onnxruntime", "openvino")


def test_the_calibrator_with_the_smallest_error_is_kept(tiny: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = calibrate(tiny.model, tiny.calibration, tiny.held_out, tiny.eager_held_out)

    def far_too_narrow(histogram: int8_graph.Histogram) -> Range:
        return Range(0.01 * histogram.lowest if histogram.lowest < 0 else 0.0, 0.01 * max(histogram.highest, 0.0))

    monkeypatch.setattr(int8_graph, "CALIBRATORS", {"narrow": far_too_narrow, **CALIBRATORS})
    given = int8_from_fp32(seen, layer_names={}, bar=0.0)
    assert {trial.calibrator for trial in given.trials} == {"narrow", *CALIBRATORS}
    errors = [trial.logit_error for trial in given.trials]
    assert errors == sorted(errors)
    assert given.calibrator == given.trials[0].calibrator
    assert given.trials[-1].calibrator == "narrow"
    assert errors[-1] > 10 * errors[0]


def test_sets_of_labels_are_compared_where_several_may_hold(tiny: Subject) -> None:
    seen = calibrate(tiny.model, tiny.calibration, tiny.held_out, tiny.eager_held_out, task="multi-label")
    given = int8_from_fp32(seen, layer_names={}, bar=0.0)
    logits = int8_logits_by_runtime(given.model, tiny.held_out)
    expected = {
        name: float(((found >= 0) == (tiny.eager_held_out >= 0)).all(axis=1).mean()) for name, found in logits.items()
    }
    assert given.agreement_by_runtime == expected
    top1 = {name: (found.argmax(1) == tiny.eager_held_out.argmax(1)).mean() for name, found in logits.items()}
    assert given.agreement_by_runtime != top1
    assert "PyTorch's set of labels on" in given.described


def test_the_same_images_give_the_same_bytes(tiny: Subject) -> None:
    first, second = (
        int8_from_fp32(
            calibrate(tiny.model, tiny.calibration, tiny.held_out, tiny.eager_held_out), layer_names={}, bar=0.5
        )
        for _ in range(2)
    )
    assert serialised(first.model) == serialised(second.model)
    assert first.trade == second.trade


@pytest.fixture(scope="module")
def resnet20(shared_data: Path) -> tuple[Subject, np.ndarray]:
    """The real one, and the held-out pictures' classes. Every other picture of each class is held out."""
    source = NetworkSource(shared_data / "checkpoints" / "resnet20-12fca82f.th")
    network = network_of(read_source(source), source)
    files = sorted((shared_data / "cifar10-test").rglob("*.jpg"))
    assert len(files) == 1000
    pixels = np.stack([np.asarray(Image.open(file).convert("RGB")) for file in files])
    names = sorted({file.parent.name for file in files})
    classes = np.array([names.index(file.parent.name) for file in files])
    held_out = pixels[1::2]
    eager = eager_logits(network.module, held_out, NORMALIZATION, lambda _: None)
    return Subject(fp32_graph(network.module), pixels[::2], held_out, eager), classes[1::2]


@pytest.fixture(scope="module")
def int8_resnet20(resnet20: tuple[Subject, np.ndarray]) -> Int8Graph:
    own, _ = resnet20
    seen = calibrate(own.model, own.calibration, own.held_out, own.eager_held_out)
    return int8_from_fp32(seen, layer_names={"fc": "linear"})


def test_the_real_resnet20_is_as_right_in_int8_as_in_fp32(
    resnet20: tuple[Subject, np.ndarray], int8_resnet20: Int8Graph
) -> None:
    own, classes = resnet20
    right = float((own.eager_held_out.argmax(axis=1) == classes).mean())
    answers = int8_logits_by_runtime(int8_resnet20.model, own.held_out)
    assert set(answers) == set(CPU_RUNTIMES)
    for runtime, logits in answers.items():
        # 500 images: 0.6 points are three of them.
        assert abs(float((logits.argmax(axis=1) == classes).mean()) - right) < 0.0061, runtime
        same = float((logits.argmax(axis=1) == own.eager_held_out.argmax(axis=1)).mean())
        assert same == int8_resnet20.agreement_by_runtime[runtime]
        assert same >= 0.98, runtime
    assert int8_resnet20.share.of_multiply_adds >= 0.8
    assert int8_resnet20.warnings == ()


def test_what_is_in_fp32_is_what_the_trade_says(int8_resnet20: Int8Graph) -> None:
    given = int8_resnet20
    assert sorted(step.layer for step in given.trade) == sorted(given.share.fp32_layer_names)
    for before, after in zip(given.trade, given.trade[1:], strict=False):
        assert before.agreement_after == after.agreement_before
        assert after.logit_error < before.logit_error
    assert len(given.fp32_nodes) == len(given.trade) == given.share.layers - given.share.own_layers
