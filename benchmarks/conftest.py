"""What pytest-benchmark writes beside the figures."""

from typing import Any

import pytest

from fuseline.benchmarks.harness.machine import machine_facts


@pytest.hookimpl(optionalhook=True)
def pytest_benchmark_update_machine_info(machine_info: dict[str, Any]) -> None:
    """Leave the host's name out of files that are passed around; add the versions of what is measured."""
    machine_info.pop("node", None)
    machine_info["fuseline"] = machine_facts()
