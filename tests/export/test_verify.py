import numpy as np
import pytest

from fuseline.export.verify import check_passed, compare, rounding_doubts
from fuseline.serve.errors import VerificationError
from fuseline.serve.model_package import Artifact, Verification

EAGER = np.array([[0, 10, 2], [1, 2, 9], [5, 4, 3]], np.float32)


def artifact(precision: str) -> Artifact:
    return Artifact.model_validate(
        {"path": "model.onnx", "sha256": "0" * 64, "bytes": 1, "format": "onnx", "precision": precision}
    )


def judge(precision: str, served: np.ndarray, eager: np.ndarray = EAGER) -> Verification:
    return compare(artifact(precision), "test", "three rows", eager, served.astype(np.float32))


def test_equal_logits_pass_with_zero_difference() -> None:
    verdict = judge("fp32", EAGER)
    assert (verdict.top1_agreement, verdict.max_abs_difference, verdict.mean_abs_difference) == (1, 0, 0)
    assert (verdict.logit_range, verdict.images, verdict.passed) == (10, 3, True)


@pytest.mark.parametrize(("difference", "passes"), [(0.009, True), (0.011, False)])
def test_fp32_may_differ_by_a_thousandth_of_the_logit_range(difference: float, passes: bool) -> None:
    served = EAGER.copy()
    served[1, 0] += difference
    assert judge("fp32", served).passed is passes


@pytest.mark.parametrize(("flipped", "passes"), [(5, True), (6, False)])
def test_fp16_must_agree_on_995_of_1000(flipped: int, passes: bool) -> None:
    eager = np.tile(np.array([[0, 8, 7.8]], np.float32), (1000, 1))
    served = eager.copy()
    served[:flipped] = [0, 7.8, 8]
    verdict = judge("fp16", served, eager)
    assert verdict.top1_agreement == pytest.approx(1 - flipped / 1000)
    assert (verdict.passed, verdict.ties) == (passes, 0)


def test_a_tie_that_fp16_cannot_tell_apart_is_no_disagreement_but_is_counted() -> None:
    eager = np.array([[8.0, 8.005, 0]], np.float32)
    verdict = judge("fp16", np.array([[8.0, 7.99, 0]]), eager)
    assert (verdict.top1_agreement, verdict.ties, verdict.passed) == (0, 1, True)
    apart = np.array([[8.0, 8.1, 0]], np.float32)
    assert judge("fp16", np.array([[8.0, 7.99, 0]]), apart).passed is False


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_logits_that_are_not_finite_are_an_overflow(bad: float) -> None:
    served = EAGER.copy()
    served[2, 1] = bad
    with pytest.raises(VerificationError, match="1 of 3 images.*overflows FP16"):
        judge("fp16", served)


def test_another_shape_is_refused() -> None:
    with pytest.raises(VerificationError, match=r"\(3, 2\)"):
        judge("fp32", EAGER[:, :2])


def test_failures_name_artifact_backend_and_figures() -> None:
    good, bad = judge("fp32", EAGER), judge("fp32", EAGER + np.eye(3))
    check_passed([good])
    with pytest.raises(VerificationError, match=r"model\.onnx on test: .*difference 1 of a logit range of 10"):
        check_passed([good, bad])


@pytest.mark.parametrize(("flipped", "passes"), [(10, True), (11, False)])
def test_bf16_must_agree_on_99_of_100(flipped: int, passes: bool) -> None:
    eager = np.tile(np.array([[0, 8, 7.8]], np.float32), (1000, 1))
    served = eager.copy()
    served[:flipped] = [0, 7.8, 8]
    verdict = compare(artifact("fp32"), "test", "rows", eager, served, precision="bf16")
    assert (verdict.precision, verdict.passed) == ("bf16", passes)
    check_passed([verdict])
    warnings = rounding_doubts([verdict])
    assert len(warnings) == (not passes)
    assert all(
        "BF16 is served only with --precision bf16: model.onnx on test: top-1 agreement 98.90%" in warning
        for warning in warnings
    )


def test_fp16_that_agrees_but_is_far_off_is_refused_as_a_server_would() -> None:
    assert judge("fp16", EAGER * 1.04).passed is True
    assert judge("fp16", EAGER * 1.06).passed is False
