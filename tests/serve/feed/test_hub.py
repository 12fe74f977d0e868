"""Those who watch a feed."""

import asyncio

import pytest

from fuseline.serve.errors import OverloadedError, ShuttingDownError
from fuseline.serve.feed.hub import MOST_WATCHERS, FeedHub


async def test_the_first_who_comes_and_the_last_who_leaves_are_told_of() -> None:
    told: list[bool] = []
    hub = FeedHub(told.append)
    one = hub.join()
    two = hub.join()
    assert told == [True]
    hub.leave(one)
    hub.leave(one)
    assert told == [True]
    hub.leave(two)
    assert told == [True, False]
    hub.leave(hub.join())
    assert told == [True, False, True, False]


async def test_everyone_gets_every_chunk_in_order_at_their_own_pace() -> None:
    hub = FeedHub(lambda _: None)
    quick, slow = hub.join(), hub.join()
    hub.publish("a")
    assert await anext(quick) == "a"
    hub.publish("b")
    assert [await anext(quick), await anext(slow), await anext(slow)] == ["b", "a", "b"]


async def test_who_is_too_slow_misses_the_oldest_chunks() -> None:
    hub = FeedHub(lambda _: None)
    watcher = hub.join()
    for number in range(1000):
        hub.publish(str(number))
    assert watcher.missed == 900
    assert [await anext(watcher) for _ in range(100)] == [str(number) for number in range(900, 1000)]


async def test_who_waits_is_ended_with_the_first_reason() -> None:
    hub = FeedHub(lambda _: None)
    watcher = hub.join()
    waiting = asyncio.create_task(_all_of(watcher))
    await asyncio.sleep(0)
    watcher.end("the token was withdrawn")
    hub.close("the server is shutting down")
    assert await waiting == []
    assert watcher.reason == "the token was withdrawn"
    with pytest.raises(ShuttingDownError, match="shutting down"):
        hub.join()


async def test_watchers_are_bounded() -> None:
    hub = FeedHub(lambda _: None)
    watchers = [hub.join() for _ in range(MOST_WATCHERS)]
    with pytest.raises(OverloadedError, match=f"{MOST_WATCHERS} watch this process already"):
        hub.join()
    hub.leave(watchers[0])
    hub.join()


async def _all_of(watcher: object) -> list[str]:
    return [chunk async for chunk in watcher]  # type: ignore[attr-defined]
