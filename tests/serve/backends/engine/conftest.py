"""Fixtures of the tests of engines."""

from types import ModuleType

import pytest


@pytest.fixture(scope="session")
def trt() -> ModuleType:
    """TensorRT for RTX, which needs no GPU to parse and build."""
    return pytest.importorskip("tensorrt_rtx", reason="pip install 'fuseline[rtx]' to build engines in tests")
