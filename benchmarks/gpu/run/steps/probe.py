"""Step 2: which engines TensorRT for RTX builds and runs here, and so how the later steps build theirs."""

from typing import Any

from fuseline.benchmarks.gpu.probe import UNSET, probe_rtx
from fuseline.benchmarks.gpu.run.job import Emit, Job, NotHereError
from fuseline.benchmarks.gpu.run.record import Row
from fuseline.serve.backends.engine.library import is_installed
from fuseline.serve.backends.engine.target import CURRENT, PORTABLE

_WORDS = {"CURRENT": CURRENT, UNSET: PORTABLE}
"""Setting to the word that asks for it, the better first; before both comes the GPU's own capability."""


def run(job: Job, emit: Emit) -> None:
    """Try every setting. `found` gets `engine_for`, the word for the first setting that answers rightly here."""
    probed = probe_rtx(lambda attempt: emit(_row(attempt)))
    capability = probed["capability"]
    running = {attempt["asked"] for attempt in probed["attempts"] if attempt.get("ran")}
    # TensorRT itself, where it is installed, builds for every GPU.
    if capability is not None and not is_installed("tensorrt"):
        # The engine of another capability may run here too, but no server would take it.
        words = {capability.upper(): capability} | _WORDS
        if (word := next((word for asked, word in words.items() if asked in running), None)) is not None:
            job.found["engine_for"] = word
    emit(
        Row(
            what="answer",
            figures={"engines are built for": job.found.get("engine_for")},
            reason=probed["answer"],
            details={key: value for key, value in probed.items() if key != "attempts"},
        )
    )
    if probed["library_version"] is None:
        raise NotHereError(probed["answer"])


def _row(attempt: dict[str, Any]) -> Row:
    ran, built = attempt.get("ran"), attempt["built"]
    figures = {
        "built": built,
        "ran": ran,
        "build s": attempt.get("seconds"),
        "plan MB": attempt["plan_bytes"] / 1e6 if built else None,
        "difference": attempt.get("difference"),
    }
    # An attempt that fails is the answer to what was asked, not a fault.
    status = "measured" if ran or (built and ran is None and "error" not in attempt) else "not here"
    return Row(
        what=f"capability {attempt['asked']}",
        status=status,
        reason=attempt.get("error"),
        figures=figures,
        details=attempt,
    )
