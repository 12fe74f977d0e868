"""Graphs that take normalised floats: the same function as of pixels, with nothing of the normalisation in them."""

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, numpy_helper
from torch import nn

from fuseline.export.eager import eager_logits
from fuseline.export.graph.graph_input import pixel_shape, rows_for, spatial_axes, takes_pixels
from fuseline.export.graph.onnx_graph import check_graph, pixel_nodes, with_cast_first
from fuseline.export.graph.onnx_operations import operations_from_onnx
from fuseline.export.graph.runtimes import int8_logits_by_runtime, onnxruntime_logits
from fuseline.export.recognition.architectures import recognise
from fuseline.export.sample import generated_sample
from fuseline.serve.errors import ArchitectureError, PackageError
from tests.export.float_graphs import FLOATS, NORMALIZATION, STD, graph_taking, spec_of
from tests.export.resnets import tiny_network

PIXELS = generated_sample(spec_of("uint8-nhwc"), 6).pixels


@pytest.fixture(scope="module")
def network() -> nn.Module:
    return recognise(tiny_network().state_dict()).module


@pytest.fixture(scope="module")
def graphs(network: nn.Module) -> dict[str, onnx.ModelProto]:
    return {takes: graph_taking(takes, network) for takes in ("uint8-nhwc", *FLOATS)}


def weights(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


@pytest.mark.parametrize("takes", FLOATS)
def test_normalised_floats_in_logits_of_pytorch_out_on_every_cpu_runtime(
    graphs: dict[str, onnx.ModelProto], network: nn.Module, takes: str
) -> None:
    expected = eager_logits(network, PIXELS, NORMALIZATION, lambda _: None)
    by_runtime = int8_logits_by_runtime(graphs[takes], PIXELS) | {
        "calibrating": onnxruntime_logits(graphs[takes], PIXELS)
    }
    assert len(by_runtime) >= 2
    for logits in by_runtime.values():
        assert logits.dtype == np.float32
        assert np.abs(logits - expected).max() < 1e-4 * np.ptp(expected)


@pytest.mark.parametrize("takes", FLOATS)
def test_a_torch_clients_own_tensor_goes_in_as_it_is(
    graphs: dict[str, onnx.ModelProto], network: nn.Module, takes: str
) -> None:
    images = torch.randn(3, 3, 32, 32).to(getattr(torch, spec_of(takes).dtype))
    with torch.inference_mode():
        expected = network(images.float()).numpy()
    logits = ort.InferenceSession(graphs[takes].SerializeToString()).run(["logits"], {"image": images.numpy()})[0]
    assert np.abs(logits - expected).max() < 1e-4 * np.ptp(expected)


@pytest.mark.parametrize("takes", FLOATS)
def test_nothing_of_the_normalisation_is_in_the_graph_and_batchnorms_are_folded(
    graphs: dict[str, onnx.ModelProto], takes: str
) -> None:
    of_pixels, of_floats = weights(graphs["uint8-nhwc"]), weights(graphs[takes])
    assert of_floats.keys() == of_pixels.keys() - {"fuseline_pixel_mean"}
    scale = np.array([255 * value for value in STD], np.float32).reshape(1, 3, 1, 1)
    np.testing.assert_allclose(of_floats["conv1.weight"], of_pixels["conv1.weight"] * scale, rtol=1e-6)
    for name in of_floats.keys() - {"conv1.weight"}:
        np.testing.assert_array_equal(of_floats[name], of_pixels[name])
    kinds = [node.op_type for node in graphs[takes].graph.node]
    assert set(kinds) - {"Cast"} == {"Conv", "Relu", "Add", "ReduceMean", "Gemm"}
    assert kinds.count("Cast") == (takes == "fp16-nchw")


@pytest.mark.parametrize("takes", FLOATS)
def test_a_graph_tells_its_form(graphs: dict[str, onnx.ModelProto], takes: str) -> None:
    model = graphs[takes]
    assert not takes_pixels(model)
    assert (pixel_shape(model), spatial_axes(model)) == ((32, 32, 3), (-2, -1))
    assert [node.op_type for node in pixel_nodes(model)] == (["Cast"] if takes == "fp16-nchw" else [])
    assert model.graph.input[0].type.tensor_type.elem_type == getattr(
        TensorProto, "FLOAT16" if takes == "fp16-nchw" else "FLOAT"
    )
    rows = rows_for(model, PIXELS)
    assert (rows.shape, rows.dtype) == ((6, 3, 32, 32), spec_of(takes).row_dtype)
    assert rows_for(graphs["uint8-nhwc"], PIXELS) is PIXELS
    assert onnxruntime_logits(with_cast_first(model), PIXELS) == pytest.approx(onnxruntime_logits(model, PIXELS))


@pytest.mark.parametrize("takes", FLOATS)
def test_operations_see_the_same_network(graphs: dict[str, onnx.ModelProto], takes: str) -> None:
    found, expected = (operations_from_onnx(graphs[each], spatial_axes(graphs[each])) for each in (takes, "uint8-nhwc"))
    layers = [(o.name, o.output_shape, o.multiply_adds) for o in found.operations if o.weight is not None]
    assert layers == [(o.name, o.output_shape, o.multiply_adds) for o in expected.operations if o.weight is not None]


def test_a_graph_of_another_form_than_the_spec_is_refused(graphs: dict[str, onnx.ModelProto]) -> None:
    for takes in FLOATS:
        other = next(name for name in FLOATS if name != takes)
        with pytest.raises(ArchitectureError, match=r"\(3, 32, 32\) of type .* not \(3, 32, 32\) float"):
            check_graph(graphs[takes], spec_of(other))
        with pytest.raises(ArchitectureError, match=r"not \(32, 32, 3\) uint8"):
            check_graph(graphs[takes], spec_of("uint8-nhwc"))


def test_a_graph_that_does_not_tell_its_normalisation_is_not_run_on_pixels(graphs: dict[str, onnx.ModelProto]) -> None:
    silent = onnx.ModelProto()
    silent.CopyFrom(graphs["fp32-nchw"])
    del silent.metadata_props[:]
    with pytest.raises(PackageError, match="metadata lacks input, normalization"):
        onnxruntime_logits(silent, PIXELS)
