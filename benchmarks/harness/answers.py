"""Whether an answer that was timed is right."""

import numpy as np
from numpy.typing import NDArray

from fuseline.protos import classify_pb2
from fuseline.serve.errors import VerificationError
from fuseline.serve.precision import PRECISIONS

_PROBABILITY_TOLERANCE = 0.05


def check_logits(who: str, precision: str, logits: NDArray[np.float32], expected: NDArray[np.float32]) -> None:
    """Raise `VerificationError` unless `logits` lie as near to `expected` as `fuseline.serve.precision` wants of
    `precision`.

    Both are float32 of the same shape, (rows, classes).
    """
    if logits.shape != expected.shape:
        raise VerificationError(f"{who} gave logits {logits.shape}, expected {expected.shape}; it was not timed")
    spread = float(expected.max() - expected.min())
    difference = float(np.abs(logits.astype(np.float64) - expected).max())
    # BF16 keeps 8 bits of a number; until it is a row of the table it is held to FP16's tolerance.
    bar = PRECISIONS.get(precision, PRECISIONS["fp16"]).max_difference * spread
    if not difference <= bar:
        raise VerificationError(
            f"{who} gives other answers than expected: logits differ by up to {difference:.3g} of a range of "
            f"{spread:.3g}, {precision} may differ by {bar:.3g}; a figure for wrong answers means nothing"
        )


def check_response(
    who: str,
    precision: str,
    response: classify_pb2.ClassifyResponse,
    expected: NDArray[np.float32],
    task: str = "single-label",
) -> None:
    """Raise `VerificationError` unless `response` answers images whose logits are `expected` (images, classes).

    Logits are compared where the response has them; the best prediction always is, by what `task` makes of logits.
    """
    if len(response.results) != len(expected):
        raise VerificationError(f"{who} gave {len(response.results)} results for {len(expected)} images")
    for result, logits in zip(response.results, expected, strict=True):
        if result.logits:
            check_logits(who, precision, np.frombuffer(result.logits, "<f4"), logits)
        _check_best(who, result.predictions[0], _probabilities(logits.astype(np.float64), task))


def _probabilities(logits: NDArray[np.float64], task: str) -> NDArray[np.float64]:
    if task == "multi-label":
        return 1 / (1 + np.exp(-logits))
    shifted = np.exp(logits - logits.max())
    return shifted / shifted.sum()


def _check_best(who: str, best: classify_pb2.Prediction, probabilities: NDArray[np.float64]) -> None:
    # Relative, since a thousand classes of an untrained network all have about 0.001.
    tolerance = _PROBABILITY_TOLERANCE * probabilities.max()
    is_best = probabilities[best.index] >= probabilities.max() - tolerance
    if not is_best or abs(best.probability - probabilities[best.index]) > tolerance:
        raise VerificationError(
            f"{who} answered class {best.index} with {best.probability:.4f}; expected class {probabilities.argmax()} "
            f"with {probabilities.max():.4f}; a figure for wrong answers means nothing"
        )
