"""The progress of a TensorRT build: its nested phases as one share."""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(slots=True)
class _Phase:
    parent: str | None
    steps: int
    done: int = 0


class BuildProgress:
    """Follows the builder's phases and reports each step.

    TensorRT calls from its own threads and swallows what is raised there, so an error of `on_progress` is kept in
    `error`; the next step then asks TensorRT to stop.
    """

    def __init__(self, on_progress: Callable[[str, float], None] | None) -> None:
        """Begin at 0. `on_progress` gets the phase and the share of the build that is done, 0 to 1, never falling."""
        self.error: BaseException | None = None
        self._on_progress = on_progress
        self._phases: dict[str, _Phase] = {}
        self._share = 0.0
        self._lock = threading.Lock()

    def start(self, phase: str, parent: str | None, steps: int) -> None:
        """Enter `phase`, within the current step of `parent`."""
        with self._lock:
            self._phases[phase] = _Phase(parent, max(steps, 1))
            self._report(phase)

    def complete_step(self, phase: str, step: int) -> bool:
        """Note that step number `step`, from 0, is done; return whether the build should go on."""
        with self._lock:
            if phase in self._phases:
                self._phases[phase].done = step + 1
            self._report(phase)
            return self.error is None

    def finish(self, phase: str) -> None:
        """Leave `phase`, whether or not it is complete."""
        with self._lock:
            self._phases.pop(phase, None)

    def stop(self, error: BaseException) -> None:
        """Stop the build at its next step because of `error`."""
        self.error = error

    def finish_all(self) -> None:
        """Report that the build has succeeded."""
        if self._on_progress is not None:
            self._on_progress("Engine built", 1.0)

    def _report(self, phase: str) -> None:
        if self._on_progress is None or self.error is not None:
            return
        shares = (self._done_of(name) for name, state in self._phases.items() if state.parent not in self._phases)
        self._share = max(self._share, min(1.0, max(shares, default=0.0)))
        try:
            self._on_progress(phase, self._share)
        except BaseException as error:  # noqa: BLE001 - raised by the builder's caller
            self.error = error

    def _done_of(self, name: str) -> float:
        phase = self._phases[name]
        within = (self._done_of(child) for child, state in self._phases.items() if state.parent == name)
        return (phase.done + max(within, default=0.0)) / phase.steps


def progress_monitor(trt: Any, progress: BuildProgress) -> Any:
    """Return an `IProgressMonitor` of the library `trt` that drives `progress`; it must outlive the build."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
            progress.start(phase, parent, steps)

        def step_complete(self, phase: str, step: int) -> bool:
            return progress.complete_step(phase, step)

        def phase_finish(self, phase: str) -> None:
            progress.finish(phase)

    return Monitor()
