"""Clients of several servers, against real servers of this process."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from fuseline.serve import errors
from fuseline.serve.balancing.outcomes import Outcome
from fuseline.serve.client import AsyncClient, Client, StreamAnswer
from fuseline.serve.client import servers as servers_module
from fuseline.serve.client.failures import outcome_of
from fuseline.serve.client.retries import RetryPolicy
from fuseline.serve.server import Server
from fuseline.serve.services.statuses import STATUS_CODE_OF_ERROR, error_from_status
from tests.commands import Run, only_error
from tests.fakes.colours import encoded, plain, write_colours_package
from tests.serve.certificates import Authority
from tests.serve.conftest import Served, StartServer, settings
from tests.serve.processes import free_port

BY_STREAM = pytest.mark.parametrize("by_stream", [False, True], ids=["calls", "streams"])


def address_of(served: Served) -> str:
    return f"127.0.0.1:{served.server.port}"


def unused_address() -> str:
    return f"127.0.0.1:{free_port()}"


def computed(served: Served) -> int:
    """Images that the server's model has computed."""
    return sum(served.backend.calls)


@BY_STREAM
async def test_each_server_gets_its_share(start_server: StartServer, by_stream: bool) -> None:
    servers = [await start_server() for _ in range(3)]
    async with AsyncClient([address_of(each) for each in servers], by_stream=by_stream) as client:
        for _ in range(60):
            await client.classify(plain("red"))
    assert all(17 <= computed(each) <= 23 for each in servers)


@BY_STREAM
async def test_servers_that_are_not_there_cost_no_request_though_none_is_tried_again(
    start_server: StartServer, by_stream: bool
) -> None:
    served = await start_server()
    addresses = [unused_address(), address_of(served), unused_address()]
    async with AsyncClient(addresses, retries=0, by_stream=by_stream) as client:
        answers = await asyncio.gather(*(client.classify(plain("red")) for _ in range(40)))
        assert (await client.model()).name == "colours"
    assert {answer.results[0].predictions[0].label for answer in answers} == {"red"}


async def test_no_server_at_all_is_one_line_that_says_so() -> None:
    async with AsyncClient([unused_address(), unused_address()], retries=0) as client:
        with pytest.raises(errors.InputError, match=r"none of 2 servers can be reached; of the last one: no server"):
            await client.classify(b"x")
        with pytest.raises(errors.InputError, match="none of 2 servers"):
            await anext(client.classify_stream([b"x"]))


@BY_STREAM
async def test_a_request_that_an_overloaded_server_refuses_goes_to_another_at_once(
    start_server: StartServer, by_stream: bool
) -> None:
    full, free = await start_server(max_queue_rows=1, max_images_per_request=1), await start_server()
    full.backend.hold()
    async with (
        AsyncClient(address_of(full), retries=0) as filling,
        AsyncClient([address_of(full), address_of(free)], by_stream=by_stream) as client,
    ):
        waiting = [asyncio.create_task(filling.classify(plain("red")))]
        await full.until_busy()
        while not full.queued_rows:  # the batch that is computed may count, or not yet
            waiting.append(asyncio.create_task(filling.classify(plain("red"))))
            await full.until(lambda: full.queued_rows > 0)
        begun = time.monotonic()
        for _ in range(10):
            await client.classify(plain("red"))
        assert time.monotonic() - begun < 5
        assert computed(free) == 10
        full.backend.release()
        await asyncio.gather(*waiting, return_exceptions=True)


async def test_errors_that_are_the_caller_s_are_not_sent_elsewhere_and_eject_no_server(
    start_server: StartServer,
) -> None:
    servers = [await start_server() for _ in range(2)]
    async with AsyncClient([address_of(each) for each in servers]) as client:
        for _ in range(20):
            with pytest.raises(errors.ImageError):
                await client.classify(b"GIF89a")
            with pytest.raises(errors.UnknownModelError):
                await client.classify(encoded(plain("red")), model="cats")
        for _ in range(10):
            await client.classify(plain("red"))
    assert sorted(map(computed, servers)) == [5, 5]


async def test_pixels_are_held_against_the_description_of_the_server_that_gets_them(tmp_path: Path) -> None:
    """Two servers whose models take different shapes, as while another version is rolled out."""
    package = write_colours_package(tmp_path / "colours")
    async with AsyncClient([unused_address(), unused_address()]) as client:
        with pytest.raises(errors.InputError, match="none of 2"):
            await client.classify(plain("red"))
    server = Server.for_packages([package], settings())
    await server.start()
    try:
        async with AsyncClient([f"127.0.0.1:{server.port}", unused_address()]) as client:
            await client.classify(plain("red"))
            (link,) = (link for link in client._servers._links.values() if link.known_models)
            stale = link.known_models["", ""]
            # What an older version took; the one that is served now takes 8 x 8.
            link.known_models["", ""] = type(stale)(**{n: getattr(stale, n) for n in stale.__slots__} | {"height": 9})
            assert (await client.classify(plain("red"))).results
            with pytest.raises(errors.RequestError, match=r"takes uint8 \(8, 8, 3\)"):
                await client.classify(plain("red", 9, 8))
    finally:
        await server.drain()


async def test_names_are_looked_up_again_when_a_server_is_gone_and_what_left_them_gets_nothing_more(
    start_server: StartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(servers_module, "LOOK_UP_AGAIN_S", 0.0)
    first, second = await start_server(), await start_server()
    known = [address_of(first), unused_address()]
    asked: list[tuple[str, int]] = []

    def resolver(host: str, port: int) -> list[str]:
        asked.append((host, port))
        return known

    async with AsyncClient("dns:///pods.example:8001", resolver=resolver) as client:
        for _ in range(4):
            await client.classify(plain("red"))
        known = [address_of(second)]
        async with asyncio.timeout(30):
            while computed(second) == 0:
                client._servers._has_trouble = True
                await client.classify(plain("red"))
        before = computed(first)
        for _ in range(20):
            await client.classify(plain("red"))
        assert computed(first) == before
        assert [link.address for link in client._servers._links.values()] == known
    assert set(asked) == {("pods.example", 8001)}


async def test_a_lookup_that_fails_later_keeps_the_servers(
    start_server: StartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(servers_module, "LOOK_UP_EVERY_S", 0.0)
    served = await start_server()
    lookups = 0

    def resolver(host: str, port: int) -> list[str]:
        nonlocal lookups
        lookups += 1
        if lookups % 3 == 2:
            raise OSError("the name server is gone")
        return [] if lookups % 3 == 0 else [address_of(served)]

    async with AsyncClient("dns:///pods.example:8001", resolver=resolver) as client:
        for _ in range(20):
            await client.classify(plain("red"))
            await asyncio.sleep(0)
    assert lookups > 3


@BY_STREAM
async def test_a_copy_goes_to_another_server_after_a_time_and_the_first_answer_counts(
    start_server: StartServer, by_stream: bool
) -> None:
    first, second = servers = [await start_server() for _ in range(2)]
    for each in servers:
        each.backend.hold()
    addresses = [address_of(each) for each in servers]
    async with AsyncClient(addresses, hedge_after_s=0.02, by_stream=by_stream) as client:
        call = asyncio.create_task(client.classify(plain("blue")))
        await asyncio.gather(*(each.until_busy() for each in servers))
        first.backend.release()
        assert (await call).results[0].predictions[0].label == "blue"
        assert all(member.under_way == 0 for member in client._servers._balancer.members)
        second.backend.release()
        # There is no budget for another copy so soon.
        for each in servers:
            each.backend.hold()
        call = asyncio.create_task(client.classify(plain("red")))
        await asyncio.wait({call}, timeout=0.2)
        for each in servers:
            each.backend.release()
        await call
    assert sum(map(computed, servers)) == 3


async def test_nothing_is_sent_twice_unless_asked(start_server: StartServer) -> None:
    servers = [await start_server() for _ in range(2)]
    for each in servers:
        each.backend.hold()
    async with AsyncClient([address_of(each) for each in servers]) as client:
        call = asyncio.create_task(client.classify(plain("red")))
        await asyncio.sleep(0.2)
        for each in servers:
            each.backend.release()
        await call
    assert sum(map(computed, servers)) == 1


@BY_STREAM
async def test_a_request_that_is_cancelled_leaves_its_server_as_it_was(
    start_server: StartServer, by_stream: bool
) -> None:
    servers = [await start_server() for _ in range(2)]
    for each in servers:
        each.backend.hold()
    async with AsyncClient([address_of(each) for each in servers], by_stream=by_stream) as client:
        calls = [asyncio.create_task(client.classify(plain("red"))) for _ in range(4)]
        await asyncio.gather(*(each.until_busy() for each in servers))
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
        assert all(call.cancelled() for call in calls)
        assert [member.under_way for member in client._servers._balancer.members] == [0, 0]
        for each in servers:
            each.backend.release()
        assert (await client.classify(plain("blue"))).results[0].predictions[0].label == "blue"


async def test_a_stream_yields_answers_as_they_come_and_raises_what_its_iterable_raises(
    start_server: StartServer,
) -> None:
    servers = [await start_server() for _ in range(2)]

    async def images() -> AsyncIterator[object]:
        for position in range(200):
            yield b"GIF89a" if position == 7 else plain("red")
        raise ZeroDivisionError

    seen = {}

    async def read(client: AsyncClient) -> None:
        async for item in client.classify_stream(images()):
            seen[item.position] = item.error

    async with AsyncClient([address_of(each) for each in servers]) as client:
        with pytest.raises(ZeroDivisionError):
            await read(client)
    assert sorted(seen) == list(range(200))
    assert [position for position, error in seen.items() if error is not None] == [7]
    assert isinstance(seen[7], errors.ImageError)
    assert min(map(computed, servers)) > 50


@pytest.mark.parametrize("count", [1, 2])
async def test_an_iterable_may_wait_for_an_answer_before_it_gives_the_next_image(
    start_server: StartServer, tmp_path: Path, count: int
) -> None:
    servers = [await start_server() for _ in range(count)]
    read: asyncio.Queue[StreamAnswer] = asyncio.Queue()
    items = []

    async def images() -> AsyncIterator[Any]:
        for image in (plain("red"), tmp_path / "nowhere.png", plain("red", 8, 9), b"GIF89a", plain("green")):
            yield image
            await asyncio.wait_for(read.get(), 20)

    async with AsyncClient([address_of(each) for each in servers]) as client:
        async for item in client.classify_stream(images()):
            items.append(item)
            read.put_nowait(item)
    assert [item.position for item in items] == [0, 1, 2, 3, 4]
    refused = [None, errors.ImageError, errors.RequestError, errors.ImageError, None]
    assert [item.error and type(item.error) for item in items] == refused


async def test_a_stream_that_is_left_early_has_taken_few_images(start_server: StartServer) -> None:
    servers = [await start_server() for _ in range(2)]
    taken = 0

    def images() -> Iterator[Any]:
        nonlocal taken
        for taken in range(1, 10_000):  # noqa: B007 the caller looks at it
            yield plain("red")

    async with AsyncClient([address_of(each) for each in servers]) as client:
        stream = client.classify_stream(images())
        await anext(stream)
        await stream.aclose()
        assert 0 < taken < 100
        assert [member.under_way for member in client._servers._balancer.members] == [0, 0]
        assert (await client.classify(plain("blue"))).results


@pytest.fixture
def pair(live_server: Server) -> str:
    """The addresses of a server that runs in another thread, and of none."""
    return f"127.0.0.1:{live_server.port},{unused_address()}"


def test_threads_call_what_is_there_in_calls_and_streams(pair: str) -> None:
    with Client(pair, retries=0) as client:
        assert client.model().name == "colours"
        labels = Counter(client.classify(plain("green")).results[0].predictions[0].label for _ in range(20))
        assert labels == {"green": 20}
        items = list(client.classify_stream(plain("blue") for _ in range(50)))
        assert sorted(item.position for item in items) == list(range(50))
        assert all(item.answer is not None for item in items)
        with pytest.raises(errors.ImageError):
            client.classify(b"GIF89a")
        with pytest.raises(errors.RequestError, match="takes uint8"):
            client.classify(np.zeros((9, 9, 3), np.uint8))
        with pytest.raises(errors.DeadlineError):
            client.classify(plain("red"), timeout_s=-1.0)
        assert all(member.under_way == 0 for member in client._servers._balancer.members)


def test_a_stream_of_threads_that_is_left_early_has_taken_few_images(pair: str) -> None:
    taken = 0

    def images() -> Iterator[Any]:
        nonlocal taken
        for taken in range(1, 10_000):  # noqa: B007 the caller looks at it
            yield plain("red")

    with Client(pair) as client:
        stream = client.classify_stream(images())
        next(stream)
        stream.close()
        assert 0 < taken < 100
        assert all(member.under_way == 0 for member in client._servers._balancer.members)


def test_threads_call_several_over_http_too(live_server: Server) -> None:
    addresses = [f"http://127.0.0.1:{live_server.http_port}", f"http://{unused_address()}"]
    with Client(addresses, retries=0) as client:
        for _ in range(10):
            assert client.classify(plain("green")).results[0].predictions[0].label == "green"
        assert len(list(client.classify_stream(plain("blue") for _ in range(20)))) == 20


def test_threads_hedge(live_server: Server) -> None:
    with Client(f"127.0.0.1:{live_server.port},localhost:{live_server.port}", hedge_after_s=1e-6) as client:
        for _ in range(30):
            assert client.classify(plain("green")).results[0].predictions[0].label == "green"
        with pytest.raises(errors.ImageError):
            client.classify(b"GIF89a")
        assert all(member.under_way == 0 for member in client._servers._balancer.members)


def test_failures_of_one_connection_are_one_for_the_budget_of_retries() -> None:
    policy = RetryPolicy(2)
    error = errors.InputError("gone")
    error.may_pass = True
    assert all(policy.takes_another(0, error, is_counted=False) for _ in range(100))
    assert not all(policy.takes_another(0, error) for _ in range(100))


def test_every_error_of_a_server_says_something_about_it() -> None:
    found = {}
    for each, code in STATUS_CODE_OF_ERROR.items():
        found[each] = outcome_of(error_from_status(code, "no", each.__name__))
    assert {each: outcome for each, outcome in found.items() if outcome is not Outcome.ANSWERED} == {
        errors.OverloadedError: Outcome.OVERLOADED,
        errors.ShuttingDownError: Outcome.DRAINING,
        errors.BackendLostError: Outcome.UNREACHABLE,
        errors.BackendError: Outcome.FAILED,
    }
    assert outcome_of(error_from_status(grpc.StatusCode.INTERNAL, "no")) is Outcome.FAILED


async def test_the_certificate_of_a_name_s_address_has_the_name_and_a_server_without_it_is_passed_over(
    start_server: StartServer, tmp_path: Path
) -> None:
    authority = Authority(tmp_path / "tls")
    named = await start_server(**authority.issue("named", names=("pods.example",)).settings)
    other = await start_server(**authority.issue("other", names=("other.example",)).settings)

    def resolver(host: str, port: int) -> list[str]:
        return [address_of(named), address_of(other)]

    connection = {"resolver": resolver, "ca": authority.ca}
    async with AsyncClient("dns:///pods.example:8001", retries=0, **connection) as client:
        for _ in range(10):
            await client.classify(encoded(plain("red")))
    assert (computed(named), computed(other)) == (10, 0)
    async with AsyncClient("dns:///fleet.example:8001", retries=0, **connection) as client:
        with pytest.raises(errors.InputError, match="certificate is for another name"):
            await client.classify(encoded(plain("red")))


@pytest.mark.parametrize("command", [("health",), ("models", "list"), ("models", "load", "colours")])
def test_commands_that_mean_one_server_refuse_several(run_fuseline: Run, command: tuple[str, ...]) -> None:
    said = only_error(run_fuseline(*command, "--address", "127.0.0.1:1,127.0.0.1:2"))
    assert "are 2 addresses" in said


def test_fuseline_classify_takes_several_addresses(pair: str, run_fuseline: Run, tmp_path: Path) -> None:
    path = tmp_path / "green.png"
    path.write_bytes(encoded(plain("green", 20, 30)))
    done = run_fuseline("classify", path, path, "--address", pair, "--json")
    assert done.exit_code == 0, done.stderr
    assert done.stdout.count('"label": "green"') == 2
    assert "is given twice" in only_error(run_fuseline("classify", path, "--address", "a:1,a:1"))


@BY_STREAM
async def test_an_address_of_something_else_costs_no_request(start_server: StartServer, by_stream: bool) -> None:
    served = await start_server()
    other = grpc.aio.server()
    address = f"127.0.0.1:{other.add_insecure_port('127.0.0.1:0')}"
    await other.start()
    try:
        async with AsyncClient([address_of(served), address], retries=0, by_stream=by_stream) as client:
            for _ in range(20):
                await client.classify(encoded(plain("red")))
            assert computed(served) == 20
        async with AsyncClient([address, unused_address()], retries=0, by_stream=by_stream) as client:
            with pytest.raises(errors.FuselineError, match="UNIMPLEMENTED|no server answers"):
                await client.classify(encoded(plain("red")))
    finally:
        await other.stop(None)
