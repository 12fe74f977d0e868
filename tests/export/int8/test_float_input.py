"""INT8 graphs of networks that take normalised floats: the input itself is what is quantised first."""

import numpy as np
import onnx
import pytest

from fuseline.export.eager import eager_logits
from fuseline.export.graph.runtimes import run_batches, serialised
from fuseline.export.int8.histograms import activation_histograms
from fuseline.export.int8.int8_graph import Form, calibrate, int8_from_fp32
from fuseline.export.int8.operators import quantised_tensors
from fuseline.serve.backends.engine.builder import build_engine
from fuseline.serve.backends.registry import why_not_installed
from tests.export.float_graphs import FLOATS, MEAN, NORMALIZATION, STD, graph_taking
from tests.export.int8.networks import Subject, subject
from tests.export.resnets import tiny_network


@pytest.fixture(scope="module")
def network_and_pictures() -> tuple[object, Subject]:
    network = tiny_network(seed=1)
    return network, subject(network, images=40)


@pytest.mark.parametrize("takes", FLOATS)
def test_both_forms_are_int8_throughout_and_quantise_the_floats_first(
    network_and_pictures: tuple[object, Subject], takes: str
) -> None:
    network, pictures = network_and_pictures
    graph = graph_taking(takes, network)  # type: ignore[arg-type]
    calibrated = calibrate(graph, pictures.calibration, pictures.held_out, pictures.eager_held_out)
    forms: tuple[Form, ...] = ("cpu", "tensorrt")
    for form in forms:
        found = int8_from_fp32(calibrated, layer_names={}, bar=0.5, form=form)
        onnx.checker.check_model(found.model, full_check=True)
        assert found.share.own_layers == found.share.layers == 21
        # 40 pictures of a network without training: the graph of pixels comes to 0.16 and 0.19.
        assert found.trials[0].logit_error < 0.3
        assert found.model.graph.input[0] == graph.graph.input[0]
        kinds = [node.op_type for node in found.model.graph.node][: 2 if takes == "fp16-nchw" else 1]
        assert kinds == [*(["Cast"] if takes == "fp16-nchw" else []), "QuantizeLinear"]
        assert len({node.name for node in found.model.graph.node}) == len(found.model.graph.node)
    if why_not_installed("tensorrt") is None:
        built = build_engine(serialised(found.model), precision="int8", capability="sm89", max_batch=2)
        assert built.achieved.layers == {"int8": 21}


@pytest.mark.parametrize("takes", FLOATS)
def test_the_range_of_the_input_is_that_of_normalised_pixels(
    network_and_pictures: tuple[object, Subject], takes: str
) -> None:
    network, pictures = network_and_pictures
    graph = graph_taking(takes, network)  # type: ignore[arg-type]
    first = quantised_tensors(graph)[0]
    seen = activation_histograms(graph, [first], pictures.calibration, lambda _: None)[first]
    floats = (pictures.calibration / 255 - np.array(MEAN)) / np.array(STD)
    assert (seen.lowest, seen.highest) == pytest.approx((floats.min(), floats.max()), rel=2e-3)
    assert int(seen.counts.sum()) == floats.size


def test_a_graph_gives_its_own_input_back(network_and_pictures: tuple[object, Subject]) -> None:
    """What histograms of the input rest on: ONNX Runtime gives an input that is an output too."""
    network, pictures = network_and_pictures
    graph = graph_taking("fp32-nchw", network)  # type: ignore[arg-type]
    graph.graph.output.append(graph.graph.input[0])
    pixels = pictures.held_out[:3]
    ((logits, rows),) = run_batches(graph, pixels)
    np.testing.assert_allclose(rows[:, 0], (pixels[..., 0] / 255 - MEAN[0]) / STD[0], rtol=1e-4, atol=1e-5)
    assert np.abs(logits - eager_logits(network, pixels, NORMALIZATION, lambda _: None)).max() < 1e-4  # type: ignore[arg-type]
