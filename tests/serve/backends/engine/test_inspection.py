"""What an engine says of its weights is held against what was asked for; it is played, as NVIDIA documents it."""

import pytest

from fuseline.serve.backends.engine.inspection import check_inspected, weights_by_precision
from fuseline.serve.errors import VerificationError
from tests.fakes.gpu import FakeCudart, FakeEngine, FakeTensorRT

TRT = FakeTensorRT()


def layer(kind, count):
    return {"Name": "conv1 + relu", "LayerType": "CaskConvolution", "Weights": {"Type": kind, "Count": count}}


def engine(*layers):
    built = FakeEngine(FakeCudart())
    built.layers = list(layers)
    return built


def test_weights_are_counted_by_their_types_and_layers_without_are_left_out():
    reformat = {"Name": "Reformatting CopyNode", "LayerType": "Reformat"}
    found = weights_by_precision(engine(layer("Half", 900), layer("Half", 60), layer("Float", 40), reformat), TRT)
    assert found == {"fp16": 960, "fp32": 40}
    assert weights_by_precision(engine(layer("Int8", 5)), TRT) == {"int8": 5}


@pytest.mark.parametrize(
    ("fp16", "kept", "passes"), [(960, (), True), (940, (), False), (940, ("fc",), True), (0, ("fc",), False)]
)
def test_an_engine_with_less_in_fp16_than_was_asked_for_is_refused(fp16, kept, passes):
    built = engine(layer("Half", fp16), layer("Float", 1000 - fp16))
    if passes:
        assert check_inspected(built, TRT, "fp16", kept_fp32=kept)["fp16"] == fp16
    else:
        with pytest.raises(VerificationError, match=rf"{1000 - fp16:,} in fp32.* of 1,000 weights; at least 95%"):
            check_inspected(built, TRT, "fp16", kept_fp32=kept)


def test_an_engine_that_was_built_without_details_tells_nothing_and_is_not_refused():
    assert check_inspected(engine("conv1 + relu"), TRT, "fp16", kept_fp32=()) == {}
