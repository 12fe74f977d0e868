import numpy as np
import pytest

from fuseline.benchmarks.harness.answers import check_logits, check_response
from fuseline.benchmarks.harness.pictures import generated_pictures
from fuseline.protos import classify_pb2
from fuseline.serve.errors import VerificationError

LOGITS = np.array([[4.0, 1.0, -2.0], [0.0, 3.0, 1.0]], np.float32)


def response(logits: np.ndarray, *, with_logits: bool = True) -> classify_pb2.ClassifyResponse:
    results = []
    for row in logits:
        probabilities = np.exp(row) / np.exp(row).sum()
        best = int(row.argmax())
        results.append(
            classify_pb2.ImageResult(
                predictions=[classify_pb2.Prediction(index=best, probability=float(probabilities[best]))],
                logits=row.astype("<f4").tobytes() if with_logits else b"",
            )
        )
    return classify_pb2.ClassifyResponse(results=results)


def test_right_answers_pass() -> None:
    check_logits("engine", "fp32", LOGITS + np.float32(1e-6), LOGITS)
    check_response("server", "fp32", response(LOGITS), LOGITS)
    check_response("server", "fp32", response(LOGITS, with_logits=False), LOGITS)


@pytest.mark.parametrize("wrong", [LOGITS + 0.1, LOGITS * np.nan, LOGITS[::-1], LOGITS[:1]])
def test_wrong_logits_are_found(wrong: np.ndarray) -> None:
    with pytest.raises(VerificationError, match="engine gave"):
        check_logits("engine gave", "fp32", wrong, LOGITS)


def test_fp16_may_differ_more_than_fp32() -> None:
    check_logits("engine", "fp16", LOGITS + np.float32(0.05), LOGITS)
    with pytest.raises(VerificationError):
        check_logits("engine", "fp16", LOGITS + np.float32(1), LOGITS)


@pytest.mark.parametrize("with_logits", [True, False])
@pytest.mark.parametrize("wrong", [LOGITS[::-1], LOGITS[:1], LOGITS * 0.3])
def test_swapped_missing_and_blurred_answers_are_found(wrong: np.ndarray, with_logits: bool) -> None:
    with pytest.raises(VerificationError):
        check_response("server", "fp32", response(wrong, with_logits=with_logits), LOGITS)


def test_of_a_multi_label_model_sigmoids_are_expected() -> None:
    sigmoids = 1 / (1 + np.exp(-LOGITS))
    results = [
        classify_pb2.ImageResult(predictions=[classify_pb2.Prediction(index=int(row.argmax()), probability=row.max())])
        for row in sigmoids
    ]
    answer = classify_pb2.ClassifyResponse(results=results)
    check_response("server", "fp32", answer, LOGITS, "multi-label")
    with pytest.raises(VerificationError, match="answered class"):
        check_response("server", "fp32", response(LOGITS * 0.3, with_logits=False), LOGITS, "multi-label")


def test_pictures_differ_from_each_other_and_are_the_same_again() -> None:
    pictures = generated_pictures((8, 6, 3), 4)
    assert pictures.shape == (4, 8, 6, 3)
    assert pictures.dtype == np.uint8
    assert np.array_equal(pictures, generated_pictures((8, 6, 3), 4))
    means = pictures.mean(axis=(1, 2))
    assert all(np.abs(means[a] - means[b]).max() > 5 for a in range(4) for b in range(a))
