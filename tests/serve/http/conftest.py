"""Every test of this folder runs on both event loops: that of the processes that serve, and that of the supervisor."""

import asyncio
from collections.abc import Callable, Mapping

import pytest

from fuseline.serve.event_loop import loop_factory


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    return {"serving": loop_factory() or asyncio.new_event_loop, "asyncio": asyncio.new_event_loop}
