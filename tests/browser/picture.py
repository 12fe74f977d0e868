"""The picture of the page in the README.

    python -m tests.browser.picture PACKAGE PICTURE OUT.png

PACKAGE is served, PICTURE dropped on the page, and a load put on the server by the page's own button. `make demo`
leaves both: build/demo/digits and build/demo/held-out/3/002.png, for example.
"""

import argparse
import sys
from pathlib import Path

from playwright.sync_api import expect

from tests.browser.chromium import running_chromium
from tests.browser.watched_page import WatchedPage
from tests.serve.processes import free_port, server_process

WIDTH, HEIGHT = 1200, 1500
RATE = 1000
"""Requests a second of the load, at which small models have batches of several rows."""
SERVED = ("--precision", "fp32")
"""As the demo serves."""
MOST_BYTES = 250_000


def main() -> None:
    parser = argparse.ArgumentParser(description="Write a picture of the page at work.")
    for name, help in (
        ("package", "what is served"),
        ("picture", "what is dropped on the page"),
        ("out", "the PNG file to write"),
    ):
        parser.add_argument(name, type=Path, help=help)
    parser.add_argument("--rate", type=int, default=RATE, help="requests a second of the load")
    asked = parser.parse_args()
    with server_process(asked.package.resolve(), *SERVED, "--port", 0, "--http-port", free_port()) as server:
        take(f"http://{server.http_address}", asked.picture, asked.out, asked.rate)
        server.process.terminate()
        server.end()
    size = asked.out.stat().st_size
    if size > MOST_BYTES:
        sys.exit(f"{asked.out} has {size:,} bytes; {MOST_BYTES:,} at most were expected")
    print(f"{asked.out}: {size:,} bytes")


def take(origin: str, picture: Path, out: Path, rate: int) -> None:
    """Write a picture of the page at `origin` under load, with the answer to `picture`."""
    with running_chromium() as browser:
        context = browser.new_context(viewport={"width": WIDTH, "height": HEIGHT}, color_scheme="light")
        page = WatchedPage(context.new_page(), origin).open().ready()
        page.load(rate, wait=False)
        # Seconds of the load: the strip is full by then.
        page.page.wait_for_function("() => document.querySelector('#latency progress').value > 1.5")
        page.drop(picture)
        expect(page.answer.get_by_role("table", name="Where the time of this request went")).to_be_visible()
        out.parent.mkdir(parents=True, exist_ok=True)
        page.page.screenshot(path=out)
        page.check()
        context.close()


if __name__ == "__main__":
    main()
