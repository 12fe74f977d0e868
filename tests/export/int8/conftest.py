"""One small network, quantised once for all tests that only read it."""

import pytest

from fuseline.export.int8.calibrators import CALIBRATORS, Range
from fuseline.export.int8.histograms import activation_histograms
from fuseline.export.int8.operators import quantised_tensors
from tests.export.int8.networks import Subject, subject
from tests.export.resnets import tiny_network


@pytest.fixture(scope="session")
def tiny() -> Subject:
    return subject(tiny_network())


@pytest.fixture(scope="session")
def tiny_ranges(tiny: Subject) -> dict[str, Range]:
    seen = activation_histograms(tiny.model, quantised_tensors(tiny.model), tiny.calibration, lambda _: None)
    return {name: CALIBRATORS["min-max"](histogram) for name, histogram in seen.items()}
