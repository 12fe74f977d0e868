from pathlib import Path

from fuseline.serve.backends import open_backend
from fuseline.serve.model_package import load_package
from fuseline.serve.warm_up import warm_up
from tests.fakes.backends import SteeredBackend


def test_warm_up_runs_and_times_every_bucket(package: Path) -> None:
    colours = load_package(package)
    backend = SteeredBackend(open_backend(colours, buckets=(1, 2, 4), backend="onnxruntime", threads=1)[0])
    seconds = warm_up([backend], colours)
    assert tuple(seconds) == (1, 2, 4)
    assert set(backend.calls) == {1, 2, 4}
    assert backend.calls.count(1) >= 2, "the first call pays for the runtime's set-up and must not be the one measured"
    assert all(0 < value < 10 for value in seconds.values())
