"""A server that has answered 200,000 requests holds no more memory and no more descriptors than after 20,000."""

import asyncio
from pathlib import Path

import pytest

from tests.faults.soak import soaking
from tests.serve.processes import FAST, free_port, server_process

FIRST, REQUESTS = 20_000, 200_000


@pytest.mark.slow
@pytest.mark.timeout(1800)
async def test_200000_requests_leave_memory_and_descriptors_flat(package: Path) -> None:
    with server_process(package, *FAST, "--http-port", free_port()) as server:
        async with asyncio.timeout(1500), soaking(server, kill_every_s=None) as tally:
            while tally.total < REQUESTS:  # noqa: ASYNC110 the callers tell no one
                await asyncio.sleep(0.2)
        server.process.terminate()
        code, stderr = await asyncio.to_thread(server.end)
    assert code == 0, stderr
    early, late = tally.ends(FIRST)
    print(f"{tally}; from {early} after {FIRST} to {late}")
    assert not tally.broken_bounds(FIRST)


async def test_a_mixed_load_with_a_client_that_is_killed_loses_nothing(package: Path) -> None:
    with server_process(package, *FAST, "--http-port", free_port()) as server:
        async with asyncio.timeout(60), soaking(server, kill_every_s=0.5) as tally:
            while not tally.killed or tally.total < 500:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        server.process.terminate()
        code, stderr = await asyncio.to_thread(server.end)
    assert code == 0, stderr
    # So short a time says nothing about what grows.
    assert [bound for bound in tally.broken_bounds(0) if "grew" not in bound] == []
