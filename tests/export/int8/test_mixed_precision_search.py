"""Layers that INT8 spoils are found and stay FP32; where that isn't enough, the error says what was tried."""

import re

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray

from fuseline.export.int8.calibrators import Range, min_max
from fuseline.export.int8.int8_graph import Calibrated, calibrate, int8_from_fp32
from fuseline.export.int8.int8_share import int8_share, layer_costs
from fuseline.export.int8.layer_noise import layer_noise
from fuseline.export.int8.mixed_precision_search import MIN_SHARE, search_mixed_precision
from fuseline.export.int8.quantiser import quantised_for_cpus
from fuseline.serve.errors import VerificationError
from tests.export.int8.networks import Subject, layers, subject
from tests.export.resnets import tiny_network

SPOILT = "layer3.0.conv2"


@pytest.fixture(scope="module")
def spoilt() -> Subject:
    """`tiny_network` with one channel before `SPOILT` a thousand times the others, which `SPOILT` scales back.

    One scale for the activation then rounds all other channels to nothing; in FP32 the network is what it was.
    """
    torch.manual_seed(0)
    own = subject(tiny_network())
    weights = {tensor.name: tensor for tensor in own.model.graph.initializer}
    by_name = {layer.name: layer for layer in layers(own.model)}
    before, after = by_name["layer3.0.conv1"], by_name[SPOILT]
    for name, axis, factor in (
        (before.input[1], 0, 1000.0),
        (before.input[2], 0, 1000.0),
        (after.input[1], 1, 0.001),
    ):
        values = np.moveaxis(onnx.numpy_helper.to_array(weights[name]).copy(), axis, 0)
        values[0] *= np.float32(factor)
        scaled = np.ascontiguousarray(np.moveaxis(values, 0, axis))
        weights[name].CopyFrom(onnx.numpy_helper.from_array(scaled, name))
    return own


def calibrated(own: Subject) -> Calibrated:
    return calibrate(own.model, own.calibration, own.held_out, own.eager_held_out)


def widest_ranges(seen: Calibrated) -> dict[str, Range]:
    return {name: min_max(histogram) for name, histogram in seen.histograms.items()}


def test_the_noise_of_a_spoilt_layer_stands_out(spoilt: Subject) -> None:
    seen = calibrated(spoilt)
    ranges = widest_ranges(seen)
    noise = layer_noise(spoilt.model, quantised_for_cpus(spoilt.model, ranges), seen.images.judging)
    assert next(iter(noise)) == SPOILT
    assert list(noise.values()) == sorted(noise.values(), reverse=True)
    assert noise[SPOILT] > 0.2
    assert set(noise) == {layer.name for layer in layers(spoilt.model)}
    without = layer_noise(spoilt.model, quantised_for_cpus(spoilt.model, ranges, [SPOILT]), seen.images.judging)
    assert SPOILT not in without


def test_the_spoilt_layer_is_the_first_that_stays_fp32_and_is_called_as_in_the_checkpoint(spoilt: Subject) -> None:
    seen = calibrated(spoilt)
    told: list[float] = []
    given = int8_from_fp32(seen, layer_names={SPOILT: "blocks.4.second"}, bar=0.75, on_progress=told.append)
    assert given.trade[0].layer == "blocks.4.second"
    assert given.trade[0].agreement_before < 0.7 < 0.75 <= given.trade[-1].agreement_after
    assert given.trade[0].multiply_adds == pytest.approx(
        layer_costs(spoilt.model)[SPOILT].multiply_adds / given.share.multiply_adds
    )
    assert len(given.trade) == 1
    assert given.share.fp32_layer_names == ("blocks.4.second",)
    assert given.fp32_nodes == {SPOILT}
    assert given.share.own_layers == given.share.layers - 1
    assert min(given.agreement_by_runtime.values()) == given.trade[-1].agreement_after
    assert told == sorted(told)
    assert told[-1] == 1.0


def test_a_bar_out_of_reach_is_an_error_with_the_trade(tiny: Subject) -> None:
    with pytest.raises(VerificationError) as caught:
        int8_from_fp32(calibrated(tiny), layer_names={"linear": "head.1"}, bar=1.01)
    message = str(caught.value)
    assert re.search(r"top-1 class on [\d.]+% on onnxruntime, [\d.]+% on openvino .* at least 101.00%", message)
    assert re.search(r"head\.1 in FP32: [\d.]+% to [\d.]+%", message)
    assert "linear in FP32" not in message
    assert "--int8-bar" in message


def test_half_of_the_multiply_adds_stay_int8_whatever_stays_fp32(tiny: Subject) -> None:
    seen = calibrated(tiny)
    costs = layer_costs(tiny.model)
    asked: list[float] = []

    def watched(model: onnx.ModelProto, pixels: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
        asked.append(int8_share(model, costs).of_multiply_adds)
        return {"none": np.zeros((len(pixels), 10), np.float32)}

    ranges = widest_ranges(seen)
    with pytest.raises(VerificationError):
        search_mixed_precision(
            tiny.model,
            lambda kept: quantised_for_cpus(tiny.model, ranges, kept),
            watched,
            seen.images,
            bar=1.0,
            costs=costs,
            layer_names={},
        )
    assert len(asked) > 1
    assert min(asked) >= MIN_SHARE
