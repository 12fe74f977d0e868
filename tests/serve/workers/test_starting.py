"""A supervisor that can't start a process says so instead of waiting for it."""

import asyncio
import os
from pathlib import Path

import pytest

from fuseline.serve.errors import BackendError, InputError
from fuseline.serve.settings import Settings
from fuseline.serve.workers.supervisor import Commands, Supervisor

SETTINGS = Settings(port=0, http_port=0, workers=2)


async def start(folders: list[Path], settings: Settings = SETTINGS) -> None:
    supervisor = Supervisor(folders, settings, Commands())
    try:
        async with asyncio.timeout(30):
            await supervisor.start()
    finally:
        await supervisor.end()
        supervisor.close()


async def test_what_the_system_refuses_ends_it_with_one_line() -> None:
    """A config longer than an argument may be: MAX_ARG_STRLEN of Linux is 128 KiB."""
    with pytest.raises(BackendError, match=r"^(backend|worker 1) can't be started: Argument list too long$"):
        await start([Path("/nowhere") / ("x" * 200) / str(number) for number in range(1000)])


async def test_a_path_that_json_cannot_hold_is_refused() -> None:
    path = Path("/nowhere") / os.fsdecode(b"r\xe9")
    for folders, repositories in (([path], ()), ([], (path,))):
        with pytest.raises(InputError, match="the path of a package or repository must be UTF-8; rename it"):
            await start(folders, SETTINGS.model_copy(update={"model_repository": repositories}))
