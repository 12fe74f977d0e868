"""Authorities whose certificates the tests of this folder use."""

from pathlib import Path

import pytest

from tests.serve.certificates import Authority


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "tls")
