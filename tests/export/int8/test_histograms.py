"""What is counted of activations, held against the activations themselves."""

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from fuseline.export.graph.runtimes import run_batches
from fuseline.export.int8.histograms import BINS, activation_histograms
from fuseline.export.int8.operators import quantised_tensors
from fuseline.serve.errors import VerificationError
from tests.export.int8.networks import Subject


def activations(model: onnx.ModelProto, tensor: str, pixels: np.ndarray) -> np.ndarray:
    watched = onnx.shape_inference.infer_shapes(model)
    watched.graph.output.extend(value for value in watched.graph.value_info if value.name == tensor)
    return np.concatenate([values for (values,) in run_batches(watched, pixels, [tensor])])


def test_a_histogram_counts_every_value_once_though_later_images_reach_further(tiny: Subject) -> None:
    dark_first = np.concatenate([tiny.calibration // 16, tiny.calibration])
    tensors = quantised_tensors(tiny.model)
    seen = activation_histograms(tiny.model, tensors, dark_first, lambda _: None)
    for name in (tensors[0], tensors[1], tensors[-1]):
        values = activations(tiny.model, name, dark_first)
        histogram = seen[name]
        assert histogram.counts.sum() == values.size
        # Another set of outputs may be fused, and rounded, in another way.
        assert (histogram.lowest, histogram.highest) == pytest.approx((values.min(), values.max()), rel=1e-6)
        assert histogram.largest < histogram.limit <= 4 * histogram.largest
        expected, _ = np.histogram(np.abs(values), BINS, range=(0, histogram.limit))
        # A value on the edge of two bins may fall to either side.
        assert np.abs(np.cumsum(expected) - np.cumsum(histogram.counts)).max() <= 1e-4 * values.size


def test_the_progress_ends_at_one_and_never_falls(tiny: Subject) -> None:
    told: list[float] = []
    activation_histograms(tiny.model, quantised_tensors(tiny.model), tiny.calibration, told.append)
    assert told == sorted(told)
    assert told[-1] == 1.0


def test_an_infinite_activation_is_named(tiny: Subject) -> None:
    broken = onnx.ModelProto()
    broken.CopyFrom(tiny.model)
    first = next(node for node in broken.graph.node if node.op_type == "Conv")
    bias = next(tensor for tensor in broken.graph.initializer if tensor.name == first.input[2])
    bias.CopyFrom(numpy_helper.from_array(np.full(tuple(bias.dims), np.inf, np.float32), bias.name))
    with pytest.raises(VerificationError, match="NaN or infinite in FP32"):
        activation_histograms(broken, quantised_tensors(broken), tiny.calibration, lambda _: None)
