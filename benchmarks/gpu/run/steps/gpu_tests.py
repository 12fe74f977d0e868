"""Step 6: the tests marked gpu, most telling first."""

import os
from typing import Any

import pytest

from fuseline.benchmarks.gpu.run.job import Emit, Job, NotHereError
from fuseline.benchmarks.gpu.run.record import Row
from fuseline.benchmarks.harness.results import without_folders
from fuseline.serve.backends.engine.target import CURRENT, PORTABLE

_FOLDER = "tests/gpu"
_FILES = ("test_gpu_backends.py", "test_gpu_lanes.py", "test_gpu_served.py", "test_gpu_engines.py", "test_gpu_leaks.py")
"""The order; files that are not named here come after."""
_PLUGINS = ("pytest_asyncio.plugin", "pytest_timeout")
"""Those that the settings of the tests name."""
_LEAK_SHARE = 0.2
"""Share of the time left at the start for each of the two leak tests."""
_ENDED_WELL = (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED)
"""What failed is told test by test."""


def run(job: Job, emit: Emit) -> None:
    """Run them in this process; each is a row as soon as it ends."""
    folder = job.checkout / _FOLDER
    if not folder.is_dir():
        raise NotHereError(f"there is no {_FOLDER} beside the code")
    os.environ["FUSELINE_LEAK_MINUTES"] = f"{job.left_s * _LEAK_SHARE / 60:.2f}"
    if (word := job.found.get("engine_for")) in (CURRENT, PORTABLE):
        os.environ["FUSELINE_ENGINE_FOR"] = word
    os.chdir(job.checkout)
    named = [f"{_FOLDER}/{name}" for name in _FILES if (folder / name).is_file()]
    others = [f"{_FOLDER}/{path.name}" for path in sorted(folder.glob("test_*.py")) if path.name not in _FILES]
    # Another machine has plugins that may not go with our pytest, and packages that warn of what is no fault of ours.
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    plugins = [flag for plugin in _PLUGINS for flag in ("-p", plugin)]
    flags = ["-m", "gpu", "-v", *plugins, "-p", "no:cacheprovider", "-o", "filterwarnings=default"]
    code = pytest.main([*flags, *named, *others], plugins=[_Reporter(emit)])
    if code == pytest.ExitCode.NO_TESTS_COLLECTED:
        raise NotHereError("no test is marked gpu there")
    if code not in _ENDED_WELL:
        raise RuntimeError(f"pytest ended with {int(code)}")


class _Reporter:
    """A pytest plugin."""

    def __init__(self, emit: Emit) -> None:
        self._emit = emit

    def pytest_runtest_logreport(self, report: Any) -> None:
        """One row for each test: what its call gave and recorded, or whatever went wrong around it."""
        if report.when != "call" and report.passed:
            return
        status = "skipped" if report.skipped else "passed" if report.passed else "failed"
        reason = None
        if report.skipped:
            reason = without_folders(report.longrepr[2].removeprefix("Skipped: "))
        elif report.failed:
            crash = getattr(report.longrepr, "reprcrash", None)
            reason = without_folders(str(report.longrepr) if crash is None else crash.message)
        name = report.nodeid.rpartition("/")[2]
        what = name if report.when == "call" or report.skipped else f"{name} ({report.when})"
        figures = {"s": round(report.duration, 2), **dict(report.user_properties)}
        self._emit(Row(what=what, status=status, reason=reason, figures=figures))

    def pytest_collectreport(self, report: Any) -> None:
        """A file that can't be imported is a row too."""
        if report.failed:
            self._emit(Row(what=report.nodeid, status="failed", reason=without_folders(str(report.longrepr)[-500:])))
