"""Pages of other sites in the browser of who can reach a server that asks for no token."""

import threading
from collections.abc import Iterator
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.request import urlopen

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.browser.conftest import StartServer
from tests.fakes.colours import write_colours_package
from tests.serve.processes import ServerProcess

UNLOAD = "/v2/repository/models/colours/unload"
FETCH = "async url => { try { await fetch(url, {method: 'POST', mode: 'no-cors', body: '{}'}) } catch {} }"
FORM = """url => {
  const form = document.createElement('form');
  form.method = 'POST'; form.action = url;
  document.body.append(form);
  form.submit();
}"""
SANDBOXED = """url => {
  const frame = document.createElement('iframe');
  frame.sandbox = 'allow-scripts allow-forms';
  frame.srcdoc = `<form method=POST action="${url}"></form><script>document.forms[0].submit()</script>`;
  document.body.append(frame);
}"""


class Elsewhere(BaseHTTPRequestHandler):
    """A page of another site."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("content-type", "text/html")
        self.send_header("referrer-policy", "no-referrer")
        self.end_headers()
        self.wfile.write(b"<!doctype html><title>elsewhere</title><p>Elsewhere.")

    def log_message(self, *_: object) -> None:
        """Keep the test's output to itself."""


@pytest.fixture
def elsewhere() -> Iterator[int]:
    """The port of another site."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Elsewhere) as site:
        thread = threading.Thread(target=site.serve_forever)
        thread.start()
        try:
            yield site.server_address[1]
        finally:
            site.shutdown()
            thread.join()


@pytest.fixture
def server(tmp_path: Path, start_server: StartServer) -> ServerProcess:
    write_colours_package(tmp_path / "models" / "colours")
    explicit = ("--model-repository", tmp_path / "models", "--model-control-mode", "explicit", "--load-model", "*")
    return start_server(*explicit)


def unload(page: Page, script: str, url: str) -> int:
    """The status of the answer to an unload that the page asks for by fetch."""
    with page.expect_response(lambda response: response.url == url) as answer:
        page.evaluate(script, url)
    return answer.value.status


def is_served(server: ServerProcess) -> bool:
    with closing(urlopen(f"http://{server.http_address}/v2/repository/index", b"", timeout=10)) as answer:
        return b"READY" in answer.read()


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "evil.example"])
@pytest.mark.parametrize("script", [FETCH, FORM, SANDBOXED], ids=["fetch", "form", "sandboxed"])
def test_another_site_unloads_no_model(
    chromium: Browser, elsewhere: int, server: ServerProcess, script: str, host: str
) -> None:
    with closing(chromium.new_context()) as context:
        page = context.new_page()
        page.goto(f"http://{host}:{elsewhere}/")
        url = f"http://{server.http_address}{UNLOAD}"
        if script == FETCH:
            assert unload(page, script, url) == 403
        else:
            page.evaluate(script, url)
            shown = page if script == FORM else page.frame_locator("iframe")
            expect(shown.get_by_text("not for another site's page")).to_be_visible()
    assert is_served(server)


def test_a_name_that_was_led_here_unloads_no_model_and_the_servers_own_page_does(
    chromium: Browser, server: ServerProcess
) -> None:
    assert server.http_address is not None
    own, port = server.http_address, server.http_address.rpartition(":")[2]
    with closing(chromium.new_context()) as context:
        page = context.new_page()
        led = f"http://evil.example:{port}"
        page.goto(f"{led}/openapi.json")
        assert unload(page, FETCH, f"{led}{UNLOAD}") == 403
        assert is_served(server)
        page.goto(f"http://{own}/")
        assert unload(page, FETCH, f"http://{own}{UNLOAD}") == 200
        assert not is_served(server)
