"""Every artifact compared with eager PyTorch FP32 on the same images, run by the backends that serve it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray

from fuseline.export.eager import rows_at_a_time
from fuseline.export.graph.runtimes import onnxruntime_logits
from fuseline.export.int8.closeness import agreement as agreement_of
from fuseline.export.int8.closeness import answer_margins, same_answers
from fuseline.export.sample import Sample
from fuseline.serve.backends import BACKENDS, open_backend, why_not_installed
from fuseline.serve.backends.onnx_artifact import READ_BY
from fuseline.serve.backends.padded import infer_in_largest_bucket
from fuseline.serve.backends.registry import backend_entry
from fuseline.serve.errors import BackendUnavailableError, VerificationError
from fuseline.serve.input_rows import row_maker
from fuseline.serve.model_package import AGREEMENT_ON, Artifact, ModelPackage, Task, Verification
from fuseline.serve.precision import FP16_RESOLUTION, PRECISIONS, PrecisionName


@dataclass(frozen=True, slots=True)
class Skipped:
    """An artifact that could not be run here, or not in some precision, and why."""

    artifact: str
    backend: str
    reason: str


def verify_artifact(
    package: ModelPackage,
    artifact: Artifact,
    sample: Sample,
    eager: NDArray[np.float32],
    on_progress: Callable[[float], None],
    *,
    precision: PrecisionName | None = None,
    bar: float | None = None,
    truth: NDArray[np.int64] | None = None,
) -> tuple[list[Verification], list[Skipped]]:
    """Run `artifact` by each backend that can load it here and compare its logits with `eager`.

    Args:
        precision: what the backends are to round to, for those that can; None: they compute the artifact's own.
        eager: logits (n, classes) of all images of `sample`; those that `Sample.judging` chooses are compared.
        on_progress: called with the share of the work that is done, 0 to 1.
        bar: `min_agreement` of `compare`.
        truth: class of each image of `sample`, (n,), if it is known.
    """
    judging, task = sample.judging(precision or artifact.precision), package.manifest.task
    pixels, eager, source = sample.pixels[judging], eager[judging], sample.source
    if not judging.all():
        source = f"{len(pixels)} held-out images of {source}"
    if artifact.details.get(READ_BY) == "tensorrt":
        logits = onnxruntime_logits(onnx.load_from_string(package.read(artifact)), pixels)
        on_progress(1.0)
        described = "onnxruntime (CPU), which rounds as the graph says"
        compared = compare(artifact, described, source, eager, logits, min_agreement=bar, task=task)
        return [_with_accuracy(compared, truth, judging, eager, logits)], []
    # A backend that rounds too little is no fault of the artifact's.
    refusals = (BackendUnavailableError,) if precision is None else (BackendUnavailableError, VerificationError)
    rounded = "" if precision is None else f" in {PRECISIONS[precision].title}"
    verifications, skipped = [], []
    names = [name for name in BACKENDS if artifact.format in backend_entry(name).formats]
    if precision is not None:
        names = [name for name in names if precision in backend_entry(name).rounds_to]
    for number, name in enumerate(names):
        if (reason := why_not_installed(name)) is not None:
            skipped.append(Skipped(artifact.path, f"{name}{rounded}", reason))
            continue

        def share(done: float, number: int = number) -> None:
            on_progress((number + done) / len(names))

        try:
            logits, described = _run(package, precision or artifact.precision, name, pixels, share)
        except refusals as error:
            skipped.append(Skipped(artifact.path, f"{name}{rounded}", str(error)))
            continue
        compared = compare(
            artifact, described, source, eager, logits, precision=precision, min_agreement=bar, task=task
        )
        verifications.append(_with_accuracy(compared, truth, judging, eager, logits))
    return verifications, skipped


def _with_accuracy(
    compared: Verification,
    truth: NDArray[np.int64] | None,
    judging: NDArray[np.bool_],
    eager: NDArray[np.float32],
    served: NDArray[np.float32],
) -> Verification:
    if truth is None:
        return compared
    right, eager_right = (float((logits.argmax(axis=1) == truth[judging]).mean()) for logits in (served, eager))
    return compared.model_copy(update={"accuracy": right, "eager_accuracy": eager_right})


def compare(
    artifact: Artifact,
    backend: str,
    source: str,
    eager: NDArray[np.float32],
    served: NDArray[np.float32],
    *,
    precision: PrecisionName | None = None,
    min_agreement: float | None = None,
    task: Task = "single-label",
) -> Verification:
    """Return how two (n, classes) arrays of logits differ, and whether that keeps the bar of the precision.

    Args:
        backend: what gave `served`, for people.
        source: what the images are, for people.
        precision: what the backend rounded to; None: it computed the artifact's own precision.
        min_agreement: smallest share of images on which the artifact's answer must be eager's; None: its precision's.
        task: whether an image's answer is its top-1 class, or its set of labels of probability 0.5 or more.

    Raises:
        VerificationError: `served` has another shape than `eager`, or a value that is NaN or infinite.
    """
    row = PRECISIONS[precision or artifact.precision]
    if eager.shape != served.shape:
        raise VerificationError(f"{artifact.path} on {backend} gave logits {served.shape}, eager PyTorch {eager.shape}")
    if not (finite := np.isfinite(served)).all():
        raise VerificationError(
            f"{artifact.path} on {backend} gives NaN or infinite logits on {int((~finite).any(axis=1).sum())} of "
            f"{len(served)} images where PyTorch FP32 does not: it overflows {row.title}"
        )
    difference = np.abs(served.astype(np.float64) - eager)
    spread = float(eager.max() - eager.min())
    same, margins = same_answers(served, eager, task), answer_margins(served, eager, task)
    agreement = float(same.mean())
    ties = int((~same & (margins <= FP16_RESOLUTION * np.abs(eager).max())).sum())
    # A server checks its backend by the same difference, so what passes here must not be refused there.
    bar = f"largest difference at most {row.max_difference:g} of the logit range"
    passed = float(difference.max()) <= row.max_difference * spread
    if row.min_agreement > 0:
        least = row.min_agreement if min_agreement is None else min_agreement
        agreed, apart = agreement, ""
        if row.ties_agree:
            agreed, apart = agreement + ties / len(eager), ", ties within FP16's resolution apart"
        bar = f"{AGREEMENT_ON[task]} agreement at least {least:.1%}{apart}; {bar}"
        passed = passed and agreed >= least
    return Verification(
        artifact=artifact.path,
        backend=backend,
        precision=precision,
        images=len(eager),
        image_source=source,
        top1_agreement=agreement_of(served, eager),
        label_set_agreement=agreement if task == "multi-label" else None,
        ties=ties,
        max_abs_difference=float(difference.max()),
        mean_abs_difference=float(difference.mean()),
        logit_range=spread,
        bar=bar,
        passed=passed,
    )


def check_passed(verifications: Sequence[Verification]) -> None:
    """Raise `VerificationError` naming every artifact below its bar, with what was measured."""
    if failures := [_described(v) for v in verifications if not v.passed and v.precision is None]:
        raise VerificationError("the export is not equal to PyTorch, so nothing was written: " + "; ".join(failures))


def rounding_doubts(verifications: Sequence[Verification]) -> tuple[str, ...]:
    """Return a warning for each precision that a backend rounds an artifact to and that misses its bar.

    The artifact itself is sound, so the package is too; a server of it leaves that precision alone unless told to.
    """
    return tuple(
        f"{PRECISIONS[v.precision].title} is served only with --precision {v.precision}: {_described(v)}"
        for v in verifications
        if not v.passed and v.precision is not None
    )


def _described(v: Verification) -> str:
    return (
        f"{v.artifact} on {v.backend}: {v.agreement_on} agreement {v.agreement:.2%} on {v.images} images, largest "
        f"difference {v.max_abs_difference:.3g} of a logit range of {v.logit_range:.3g}; the bar is: {v.bar}"
    )


def _run(
    package: ModelPackage,
    precision: PrecisionName,
    name: str,
    pixels: NDArray[np.uint8],
    on_progress: Callable[[float], None],
) -> tuple[NDArray[np.float32], str]:
    backend, _ = open_backend(package, backend=name, precision=precision, buckets=(rows_at_a_time(pixels),))
    row, to_rows = PRECISIONS[precision], row_maker(package.manifest)
    device = backend.device if row.graph == precision else f"{backend.device}, {row.title}"
    try:
        return infer_in_largest_bucket(backend, pixels, on_progress, to_rows=to_rows), f"{name} ({device})"
    finally:
        backend.close()
