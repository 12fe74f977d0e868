import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fuseline.export.inspection.fp16_risk import fp16_facts, largest_value
from fuseline.serve.precision import FP16_LARGEST


@given(
    st.lists(st.floats(-70000, 70000, width=32) | st.floats(-(2.0**-13), 2.0**-13, width=32), min_size=1, max_size=50)
)
def test_shares_are_what_a_cast_does(values: list[float]) -> None:
    weight = np.array(values, np.float32)
    with np.errstate(over="ignore"):
        fp16 = weight.astype(np.float16)
    found = fp16_facts("conv", weight, None)
    zero = ((fp16 == 0) & (weight != 0)).mean()
    # A number just below 2**-14 rounds up to it, and has kept its bits but one.
    smallest_normal = np.float16(2.0**-14)
    subnormal = ((fp16 != 0) & (np.abs(fp16) < smallest_normal)).mean()
    rounded_up = ((np.abs(weight) < 2.0**-14) & (np.abs(fp16) == smallest_normal)).mean()
    assert found.zero_share == pytest.approx(zero)
    assert found.subnormal_share == pytest.approx(subnormal + rounded_up)
    assert np.isinf(fp16).any() <= any("beyond" in risk for risk in found.risks)


@pytest.mark.parametrize(
    ("weight", "activation", "risk"),
    [
        ([1.0, 2.0], 10.0, None),
        ([70_000.0], 10.0, "a weight of 7e+04 is beyond"),
        ([2.0**-15, 2.0**-15, 1.0], 10.0, "67% of its weights lie below"),
        ([2.0**-15, 1.0], 10.0, None),
        ([1.0], 66_000.0, "reaches 6.6e+04 on generated images, beyond 65504"),
        ([1.0], FP16_LARGEST / 15, "15.0 times below 65504"),
        ([1.0], FP16_LARGEST / 17, None),
        ([1.0], float("nan"), "not finite"),
    ],
)
def test_what_is_a_risk(weight: list[float], activation: float, risk: str | None) -> None:
    risks = fp16_facts("conv", np.array(weight, np.float32), activation).risks
    assert len(risks) == (risk is not None)
    assert risk is None or risk in risks[0]


def test_the_largest_value_is_the_one_that_is_no_number() -> None:
    assert largest_value({"a": 3.0, "b": float("nan"), "c": 5.0})[0] == "b"
    assert largest_value({}) is None
