"""A page that is left open doesn't grow."""

import json
import os
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from playwright.sync_api import CDPSession, expect

from fuseline import Client
from tests.browser.conftest import OpenPage
from tests.browser.watched_page import WatchedPage
from tests.fakes.colours import noise
from tests.serve.processes import ServerProcess

REAL_MINUTES = float(os.environ.get("FUSELINE_PAGE_MINUTES", "0"))
"""Minutes of a real feed, as long as they last; none by default."""
RECORDED_S = 4.0
MOST_GROWN_BYTES = 400_000
"""The heap may be larger in the end by this much: one in fifty batches that are never let go are more."""
MOST_NODES = 20

_REPLAY = """
(() => {
  const real = window.fetch;
  window.fetch = (resource, options) => {
    if (!String(resource).endsWith("/console/events")) return real(resource, options);
    const encoder = new TextEncoder();
    const body = new ReadableStream({
      start(controller) {
        window.tellEvent = (type, data) =>
          controller.enqueue(encoder.encode(`event: ${type}\\ndata: ${JSON.stringify(data)}\\n\\n`));
      },
    });
    return Promise.resolve(new Response(body, { headers: { "content-type": "text/event-stream" } }));
  };
})();
"""
_TELL_SECONDS = """
async ({ chunks, fields, span, from, until }) => {
  const times = [fields.batches.indexOf("started"), fields.batches.indexOf("finished")];
  for (let round = from; round < until; round += 1) {
    const by = round * span;
    for (const [index, chunk] of chunks.entries()) {
      const told = { ...chunk, now: chunk.now + by };
      if (chunk.batches) {
        told.batches = chunk.batches.map((row) => {
          const moved = row.map((value, place) => (times.includes(place) ? value + by : value));
          moved[fields.batches.indexOf("n")] += round * 100_000;
          return moved;
        });
      }
      if (chunk.totals) told.totals = chunk.totals.map((row) => [...row.slice(0, -1), row.at(-1) + round * 1000]);
      window.tellEvent("chunk", told);
      // The page takes what came, and draws.
      if (index % 10 === 9) await new Promise((resolve) => setTimeout(resolve));
    }
  }
}
"""


class Memory:
    """What a page holds."""

    def __init__(self, page: WatchedPage) -> None:
        self._page = page.page
        self._session: CDPSession = page.page.context.new_cdp_session(page.page)
        self._session.send("HeapProfiler.enable")

    def used(self) -> tuple[int, int]:
        """Bytes of the heap of scripts and nodes of the document, without garbage."""
        looks = [self._look() for _ in range(5)]
        return min(heap for heap, _ in looks), min(nodes for _, nodes in looks)

    def _look(self) -> tuple[int, int]:
        # A frame that is drawn meanwhile has garbage of its own.
        self._page.evaluate("new Promise(resolve => requestAnimationFrame(() => setTimeout(resolve, 50)))")
        self._session.send("HeapProfiler.collectGarbage")
        heap = self._session.send("Runtime.getHeapUsage")["usedSize"]
        return int(heap), int(self._session.send("Memory.getDOMCounters")["nodes"])


def check_not_grown(first: tuple[int, int], last: tuple[int, int]) -> None:
    print(f"heap {first[0]:,} B, then {last[0]:,} B; nodes {first[1]}, then {last[1]}")
    assert last[0] <= first[0] + MOST_GROWN_BYTES, (first, last)
    assert last[1] <= first[1] + MOST_NODES, (first, last)


@contextmanager
def loaded(server: ServerProcess, rate: float) -> Iterator[None]:
    """Call the server so often a second, by a client of its own."""
    ended = threading.Event()
    pixels = noise(3)

    def call() -> None:
        with Client(server.address) as client:
            while not ended.wait(1 / rate):
                client.classify(pixels[np.random.default_rng().integers(3)])

    thread = threading.Thread(target=call)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(30)


def recorded(server: ServerProcess) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The greeting of a real feed and what follows within `RECORDED_S`, while the server is called."""
    request = urllib.request.Request(
        f"http://{server.http_address}/console/events", headers={"Accept": "text/event-stream"}
    )
    hello: dict[str, Any] = {}
    chunks: list[dict[str, Any]] = []
    type = ""
    with loaded(server, rate=80), urllib.request.urlopen(request, timeout=10) as feed:
        until = time.monotonic() + RECORDED_S
        for line in feed:
            name, _, value = line.decode().rstrip("\r\n").partition(": ")
            if name == "event":
                type = value
            elif name == "data" and type == "hello":
                hello = json.loads(value)
            elif name == "data" and type == "chunk":
                chunks.append(json.loads(value))
            if time.monotonic() > until:
                break
    assert hello
    assert any(chunk.get("batches") for chunk in chunks)
    return hello, chunks


def test_half_an_hour_of_a_feed_that_is_told_fast_doesnt_grow_the_page(
    colours: ServerProcess, open_page: OpenPage
) -> None:
    hello, chunks = recorded(colours)
    page = open_page(colours, height=3000, script=_REPLAY)
    page.page.wait_for_function("() => window.tellEvent !== undefined")
    page.page.evaluate("hello => window.tellEvent('hello', hello)", hello)
    page.ready()
    page.open_table()
    memory = Memory(page)
    span = chunks[-1]["now"] - chunks[0]["now"] + 0.1

    def tell(from_s: float, until_s: float) -> None:
        rounds = {"from": int(from_s / span), "until": int(until_s / span)}
        page.page.evaluate(_TELL_SECONDS, {"chunks": chunks, "fields": hello["fields"], "span": span, **rounds})

    # Until then what is kept of the last minute is being filled, and the scripts compiled.
    tell(0, 600)
    first = memory.used()
    tell(600, 1800)
    expect(page.activity).to_contain_text("batches/s")
    check_not_grown(first, memory.used())


@pytest.mark.skipif(not REAL_MINUTES, reason="FUSELINE_PAGE_MINUTES=30 lets it watch a real feed for so long")
@pytest.mark.timeout(60 * REAL_MINUTES + 300)
def test_minutes_of_a_real_feed_dont_grow_the_page(colours: ServerProcess, open_page: OpenPage) -> None:
    page = open_page(colours, height=3000).ready()
    page.open_table()
    memory = Memory(page)
    used = []
    with loaded(colours, rate=60):
        for _ in range(max(3, round(REAL_MINUTES)) + 1):
            page.page.wait_for_timeout(60_000)
            used.append(memory.used())
            print(f"heap {used[-1][0]:,} B, {used[-1][1]} nodes", flush=True)
    # The first two minutes fill what is kept of the last minute.
    check_not_grown(used[1], used[-1])
