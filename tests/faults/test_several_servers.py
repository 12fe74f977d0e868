"""Three real servers behind one client: one is killed, one hangs, one drains, one is added."""

import asyncio
import signal
import time
from pathlib import Path

import pytest

from fuseline.serve.client import AsyncClient, Client
from tests.fakes.colours import LABELS, plain
from tests.faults.fleet import NAME, balanced_load, fleet_of, unevenness

pytestmark = pytest.mark.slow

BY_STREAM = pytest.mark.parametrize("by_stream", [False, True], ids=["calls", "streams"])


@BY_STREAM
async def test_healthy_servers_get_even_loads_and_one_that_is_killed_or_drains_costs_no_request(
    tmp_path: Path, by_stream: bool
) -> None:
    with fleet_of(tmp_path, 4, known=3) as fleet:
        async with (
            AsyncClient(NAME, resolver=fleet.resolver, by_stream=by_stream) as client,
            balanced_load(client) as load,
        ):
            await load.more(100)
            even = await load.more(3000)
            assert unevenness(even, [0, 1, 2]) <= 0.1, even
            fleet.send(0, signal.SIGKILL)
            killed = time.monotonic()
            await load.until(lambda: time.monotonic() > killed + 0.5)
            assert 0 not in await load.more(500)
            assert fleet.lookups >= 2
            fleet.known[0] = fleet.servers[3].address
            await load.until(lambda: load.answers[3] > 0)
            even = await load.more(1500)
            assert unevenness(even, [1, 2, 3]) <= 0.15, even
            fleet.send(1, signal.SIGTERM)
            code, stderr = await asyncio.to_thread(fleet.servers[1].end)
            assert code == 0, stderr
            assert 1 not in await load.more(500)
        assert not load.errors
        print(f"{load.sent} requests, longest {load.longest_s:.2f} s")


@BY_STREAM
async def test_a_drain_loses_no_request_even_of_a_client_that_never_tries_again(
    tmp_path: Path, by_stream: bool
) -> None:
    with fleet_of(tmp_path, 2) as fleet:
        addresses = fleet.known
        async with AsyncClient(addresses, retries=0, by_stream=by_stream) as client, balanced_load(client) as load:
            await load.more(300)
            fleet.send(0, signal.SIGTERM)
            code, stderr = await asyncio.to_thread(fleet.servers[0].end)
            assert code == 0, stderr
            assert set(await load.more(300)) == {1}
        assert not load.errors


@BY_STREAM
async def test_requests_of_a_server_that_is_stopped_are_answered_by_others_and_it_comes_back(
    tmp_path: Path, by_stream: bool
) -> None:
    with fleet_of(tmp_path, 3) as fleet:
        async with AsyncClient(fleet.known, by_stream=by_stream) as client, balanced_load(client) as load:
            await load.more(300)
            fleet.send(2, signal.SIGSTOP)
            stopped = time.monotonic()
            await load.until(lambda: load.longest_s > 2)
            told_after_s = time.monotonic() - stopped
            assert 2 not in await load.more(500)
            fleet.send(2, signal.SIGCONT)
            before = load.answers[2]
            await load.until(lambda: load.answers[2] > before + 100, timeout_s=40)
        assert not load.errors
        assert told_after_s < 12
        print(f"found out after {told_after_s:.1f} s, longest request {load.longest_s:.1f} s")


def test_threads_lose_no_request_when_a_server_is_killed_in_a_stream_or_in_calls(tmp_path: Path) -> None:
    with fleet_of(tmp_path, 3) as fleet, Client(",".join(fleet.known)) as client:
        colours = [LABELS[position % 4] for position in range(1500)]
        answered = {}
        for item in client.classify_stream(map(plain, colours)):
            if len(answered) == 500:
                fleet.send(0, signal.SIGKILL)
            assert item.error is None
            answered[item.position] = item.answer.results[0].predictions[0].label
        assert answered == dict(enumerate(colours))
        fleet.send(1, signal.SIGTERM)
        versions = {client.classify(plain("red")).model_version for _ in range(500)}
        assert "1" not in versions
        assert client.classify(plain("red")).model_version == "3"
