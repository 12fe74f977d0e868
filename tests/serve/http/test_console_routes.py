"""What the page is answered: its files, facts, reference images, the feed, and a load."""

import asyncio
import json
import re
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from fuseline.serve.console.page_files import page_files
from fuseline.serve.feed.hub import MOST_WATCHERS
from tests.fakes.colours import LABELS, encoded, plain
from tests.serve.access.token_files import TokenFile, withdraw
from tests.serve.certificates import Authority
from tests.serve.conftest import Served, StartServer
from tests.serve.http.calls import Answer, call, call_over_tls, get

KEY = "0123456789abcdef" * 2
HTML = {"Accept": "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"}
LOAD = {"model": "colours", "rate": 200, "seconds": 0.1}


class Feed:
    """The events that a watcher reads."""

    def __init__(self, reader: asyncio.StreamReader, head: str) -> None:
        self._reader = reader
        self.head = head
        self.status = int(head.split()[1])

    async def event(self) -> tuple[str, Any]:
        """The next event, as its name and what it holds."""
        size = int(await self._reader.readuntil(b"\r\n"), 16)
        if not size:
            raise EOFError
        text = (await self._reader.readexactly(size + 2))[:-2].decode()
        kind, data = re.fullmatch(r"event: (\w+)\ndata: (.*)\n\n", text).groups()  # type: ignore[union-attr]
        return kind, json.loads(data)

    async def until(self, name: str) -> Any:
        """The member `name` of the next chunk that has it."""
        while True:
            kind, chunk = await self.event()
            assert kind == "chunk"
            if name in chunk:
                return chunk[name]


@asynccontextmanager
async def watching(served: Served, *fields: str) -> AsyncIterator[Feed]:
    reader, writer = await asyncio.open_connection("127.0.0.1", served.server.http_port, limit=2**22)
    try:
        async with asyncio.timeout(30):
            head = "\r\n".join(["GET /console/events HTTP/1.1", "Host: localhost", *fields, "", ""])
            writer.write(head.encode())
            yield Feed(reader, (await reader.readuntil(b"\r\n\r\n")).decode())
    finally:
        writer.transport.abort()


async def post(served: Served, value: object, **fields: str) -> Answer:
    headers = {"Content-Type": "application/json"} | {name.replace("_", "-"): value for name, value in fields.items()}
    return await call(served, "POST", "/console/load", json.dumps(value).encode(), headers)


# The page


async def test_a_browser_gets_the_page_and_anyone_else_the_index(start_http: StartServer) -> None:
    served = await start_http()
    page = await call(served, "GET", "/", headers=HTML)
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert page.body == page_files()["index.html"].content
    for accept in ({}, {"Accept": "*/*"}, {"Accept": "application/json, text/html;q=0.5"}):
        assert (await call(served, "GET", "/", headers=accept)).json["name"] == "fuseline"


async def test_the_page_may_do_nothing_that_is_not_its_own(start_http: StartServer) -> None:
    served = await start_http()
    policy = (await call(served, "GET", "/", headers=HTML)).headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self';")
    assert "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy
    for name, file in page_files().items():
        answer = await get(served, f"/console/{name}")
        assert (answer.status, answer.body) == (200, file.content)
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "unsafe-eval" not in answer.headers["content-security-policy"]
        if name != "report.html":
            assert answer.headers["content-security-policy"] == policy
        cached = await call(served, "GET", f"/console/{name}", headers={"If-None-Match": answer.headers["etag"]})
        assert (cached.status, cached.body) == (304, b"")


@pytest.mark.parametrize("name", ["nope.js", "..%2fconsole.py", "%2e%2e/load.py", "__init__.py", "page_files.py"])
async def test_no_other_file_is_served(start_http: StartServer, name: str) -> None:
    served = await start_http()
    assert (await get(served, f"/console/{name}")).status == 404


async def test_without_the_page_nothing_of_it_is_there(start_http: StartServer) -> None:
    served = await start_http(console=False)
    assert (await call(served, "GET", "/", headers=HTML)).json["name"] == "fuseline"
    for path in (
        "/console/server",
        "/console/events",
        "/console/main.js",
        "/console/models/colours/versions/1/reference",
    ):
        assert (await get(served, path)).status == 404
    assert not [path for path in (await get(served, "/openapi.json")).json["paths"] if "console" in path]


# What it shows


async def test_the_server_and_its_models_are_described(start_http: StartServer) -> None:
    served = await start_http(latency_target=50, alias=("hue=colours",))
    facts = (await get(served, "/console/server")).json
    assert facts["grpc"] == [f"127.0.0.1:{served.server.port}"]
    assert (facts["tokens"], facts["tls"], facts["role"], facts["workers"]) == (False, False, "admin", 1)
    assert facts["load"] == {"allowed": True, "why_not": "", "max_seconds": 5.0, "max_rate": 2000.0}
    assert facts["aliases"] == ["hue"]
    (model,) = facts["models"]
    assert (model["name"], model["version"], model["is_default"]) == ("colours", "1", True)
    assert (model["backend"], model["precision"], model["device"]) == ("onnxruntime", "fp32", "CPU")
    assert model["latency_target_ms"] == 50
    assert [bucket["rows"] for bucket in model["buckets"]] == list(
        served.server.repository.find("colours").backend.buckets
    )
    assert all(bucket["ms"] > 0 for bucket in model["buckets"]), "warm-up measured each"
    assert (model["folds"], model["has_report"]) == (None, False)


async def test_the_reference_images_come_with_pytorchs_answers(start_http: StartServer) -> None:
    served = await start_http()
    base = "/console/models/colours/versions/1/reference"
    reference = (await get(served, base)).json
    assert (reference["height"], reference["width"], reference["channels"]) == (8, 8, 3)
    for number, answer in enumerate(reference["images"]):
        pixels = await get(served, f"{base}/{number}")
        assert (pixels.headers["content-type"], len(pixels.body)) == ("application/octet-stream", 8 * 8 * 3)
        path = "/v1/models/colours/versions/1/classify?raw=true&top_k=4"
        (result,) = (await call(served, "POST", path, pixels.body)).json["results"]
        assert [each["label"] for each in answer] == [each["label"] for each in result["predictions"]]
        assert [each["probability"] for each in answer] == pytest.approx(
            [each["probability"] for each in result["predictions"]], abs=1e-3
        )
        assert sorted(each["index"] for each in answer) == list(range(len(LABELS)))
    for index in ("99", "-1", "x", "1e0", "٣"):
        path = f"{base}/{index}" if index.isascii() else f"{base}/%D9%A3"
        assert (await get(served, path)).status == 404, index
    assert (await get(served, "/console/models/cats/versions/1/reference")).status == 404
    assert (await get(served, "/console/models/colours/versions/7/reference/0")).status == 404


async def test_a_report_is_read_from_the_package_and_may_run_nothing(start_http: StartServer) -> None:
    served = await start_http()
    folder = served.server.repository.find("colours").package.folder
    path = "/console/models/colours/versions/1/report"
    missing = await get(served, path)
    assert (missing.status, missing.error) == (404, "the package of colours has no report that can be read")
    report = folder / "report.html"
    try:
        report.write_text("<script>alert(1)</script>")
        answer = await get(served, path)
        assert answer.body == b"<script>alert(1)</script>"
        assert answer.headers["content-security-policy"].startswith("sandbox; default-src 'none';")
        assert (await get(served, "/console/server")).json["models"][0]["has_report"] is True
    finally:
        report.unlink()


@pytest.mark.parametrize("text", ["", "[]", "{", '{"folds": 3, "kept": [], "precision": {}}', "[" * 100_000])
async def test_a_report_that_says_nothing_readable_is_none(start_http: StartServer, text: str) -> None:
    served = await start_http()
    report = served.server.repository.find("colours").package.folder / "report.json"
    try:
        report.write_text(text)
        assert (await get(served, "/console/server")).json["models"][0]["folds"] is None
    finally:
        report.unlink()


# The feed


async def test_a_request_is_followed_to_the_batch_that_it_rode_in(start_http: StartServer) -> None:
    served = await start_http()
    async with watching(served) as feed:
        kind, hello = await feed.event()
        assert kind == "hello"
        assert "text/event-stream" in feed.head
        answer = await call(served, "POST", "/v1/classify", encoded(plain("red")), {"X-Request-Id": f"console-{KEY}"})
        assert answer.status == 200
        batch: dict[str, Any] = {}
        told: dict[str, Any] = {}
        request: dict[str, Any] = {}
        while not (batch and told and request):
            _, chunk = await feed.event()
            for row in chunk.get("batches", []):
                batch = dict(zip(hello["fields"]["batches"], row, strict=True))
            for row in chunk.get("requests", []):
                request = dict(zip(hello["fields"]["requests"], row, strict=True))
            for told in chunk.get("followed", []):
                assert told["id"] == f"console-{KEY}"
        assert batch["keys"] == [told["key"]] == [KEY]
        assert (batch["model"], batch["version"], batch["rows"], batch["bucket"]) == ("colours", "1", 1, 1)
        assert told["arrived"] < told["decoded"] <= told["submitted"] <= batch["started"]
        assert batch["started"] + batch["compute"] <= batch["finished"] <= told["answered"]
        assert (request["method"], request["code"], request["batch_rows"]) == ("http/classify", "OK", 1)


async def test_an_id_of_another_form_is_not_followed(start_http: StartServer) -> None:
    served = await start_http()
    async with watching(served) as feed:
        await feed.event()
        for request_id in ("console-", f"console-{KEY}0", f"console-{KEY.upper()}", "mine"):
            await call(served, "POST", "/v1/classify", encoded(plain("red")), {"X-Request-Id": request_id})
        seen = 0
        while seen < 4:
            kind, chunk = await feed.event()
            assert kind == "chunk"
            assert "followed" not in chunk
            assert all(len(row) == 12 for row in chunk.get("batches", []))
            seen += chunk.get("requests_seen", 0)


async def test_requests_over_grpc_and_refusals_are_told_too(start_http: StartServer) -> None:
    served = await start_http()
    async with watching(served) as feed:
        await feed.event()
        assert (await call(served, "POST", "/v1/classify", b"no picture")).status == 400
        (refusal,) = await feed.until("refusals")
        assert refusal == ["http/classify", "colours", "INVALID_ARGUMENT", "ImageError", 1, ""]
        totals = await feed.until("totals")
        assert ["http/classify", "colours", "1", "INVALID_ARGUMENT", 1] in totals


async def test_a_feed_ends_with_its_server(start_http: StartServer) -> None:
    served = await start_http()
    async with watching(served) as feed:
        await feed.event()
        served.server.hub.close("the server is shutting down")
        while (event := await feed.event())[0] == "chunk":
            pass
        assert event == ("end", {"reason": "the server is shutting down"})
        with pytest.raises(EOFError):
            await feed.event()
    late = await get(served, "/console/events")
    assert (late.status, late.error) == (503, "the server is shutting down")


async def test_whoever_goes_away_is_told_nothing_more_and_then_nothing_is_gathered(start_http: StartServer) -> None:
    served = await start_http()
    source = served.server._metrics.feed
    async with watching(served) as feed, watching(served) as other:
        await feed.event()
        await other.event()
        assert source.is_watched
    await served.until(lambda: not source.is_watched)


async def test_watchers_are_bounded_and_a_head_is_none(start_http: StartServer) -> None:
    served = await start_http()
    assert (await call(served, "HEAD", "/console/events")).status == 200
    assert not served.server._metrics.feed.is_watched
    for _ in range(MOST_WATCHERS):
        served.server.hub.join()
    answer = await get(served, "/console/events")
    assert answer.status == 429
    assert "close a page" in answer.error


async def test_old_connections_are_ended_so_that_the_page_connects_anew(start_http: StartServer) -> None:
    served = await start_http(max_connection_age_s=0.2)
    async with watching(served) as feed:
        await feed.event()
        while (event := await feed.event())[0] == "chunk":
            pass
        assert event == ("end", {"reason": "the connection is as old as connections get"})


# Doors


async def test_a_name_that_another_site_chose_is_refused(start_http: StartServer, tokens: TokenFile) -> None:
    served = await start_http()
    port = served.server.http_port
    for host in ("evil.example", f"evil.example:{port}", "127.0.0.1.evil.example", "a b", "localhost.evil.example:1"):
        for path in ("/console/server", "/console/events", "/console/models/colours/versions/1/reference"):
            answer = await call(served, "GET", path, headers={"Host": host})
            assert answer.status == 403, host
            assert "DNS" not in answer.error
            assert "open the page by the server's address" in answer.error
        assert (await post(served, LOAD, Host=host)).status == 403
    for host in ("127.0.0.1", f"127.0.0.1:{port}", "localhost:1", "[::1]:8002", "app.localhost", "192.168.1.7"):
        assert (await call(served, "GET", "/console/server", headers={"Host": host})).status == 200, host
    guarded = await start_http(token_hashes=tokens.path)
    headers = {"Host": "fuseline.example", "Authorization": f"Bearer {tokens.infer}"}
    assert (await call(guarded, "GET", "/console/server", headers=headers)).status == 200, "tokens tell who it is"


async def test_the_page_is_open_and_what_it_shows_needs_a_token(start_http: StartServer, tokens: TokenFile) -> None:
    served = await start_http(token_hashes=tokens.path)
    assert (await call(served, "GET", "/", headers=HTML)).status == 200
    assert "version" not in (await get(served, "/")).json, "nobody said who they are"
    for name in page_files():
        assert (await get(served, f"/console/{name}")).status == 200, name
    assert (await get(served, "/console/server")).status == 401
    for token, role, allowed in ((tokens.infer, "infer", False), (tokens.admin, "admin", True)):
        headers = {"Authorization": f"Bearer {token}"}
        facts = (await call(served, "GET", "/console/server", headers=headers)).json
        assert (facts["role"], facts["tokens"], facts["load"]["allowed"]) == (role, True, allowed)
        answer = await post(served, LOAD, **headers)
        assert answer.status == (200 if allowed else 403)
    assert "admin" in (await post(served, LOAD, Authorization=f"Bearer {tokens.infer}")).error


async def test_a_feed_ends_once_its_token_is_withdrawn(start_http: StartServer, tokens: TokenFile) -> None:
    served = await start_http(token_hashes=tokens.path)
    async with watching(served) as stranger:
        assert stranger.status == 401
    async with watching(served, f"Authorization: Bearer {tokens.infer}") as feed:
        assert (await feed.event())[0] == "hello"
        withdraw(tokens, "shop")
        while (event := await feed.event())[0] == "chunk":
            pass
        assert event[0] == "end"
        assert "withdrawn" in event[1]["reason"]


# A load


async def test_a_load_is_answered_with_what_became_of_it(start_http: StartServer) -> None:
    served = await start_http()
    result = (await post(served, LOAD)).json
    # On average 20 are sent, of a standard deviation of 4.5.
    assert 1 <= result["sent"] == result["answered"] == result["by_code"]["OK"] < 60
    assert result["wrong"] == 0
    assert 0 < result["p50_ms"] <= result["p99_ms"]


async def test_a_load_that_makes_no_sense_is_refused_with_the_reason(start_http: StartServer) -> None:
    served = await start_http()
    for change, why in (
        ({"rate": 1e9}, "'rate': input should be less than or equal to 2000"),
        ({"seconds": 60}, "'seconds'"),
        ({"modle": "x"}, "'modle': extra inputs are not permitted"),
        ({"rate": "fast"}, "'rate'"),
    ):
        answer = await post(served, LOAD | change)
        assert answer.status == 400
        assert why in answer.error
    assert (await post(served, LOAD | {"model": "cats"})).status == 404
    assert (await post(served, [1])).status == 400
    assert (await post(served, {"model": "x" * 5000, "rate": 1})).status == 400


async def test_another_sites_page_can_put_no_load_on_the_server(start_http: StartServer) -> None:
    served = await start_http()
    assert (await post(served, LOAD, Sec_Fetch_Site="cross-site")).status == 403
    assert (await post(served, LOAD, Content_Type="text/plain", Origin="https://evil.example")).status == 403
    assert (await post(served, LOAD, Sec_Fetch_Site="same-origin")).status == 200
    assert (await post(served, LOAD, X_Forwarded_For="203.0.113.7")).status == 403


async def test_beyond_this_machine_the_page_is_asked_for_and_puts_no_load_on_it(start_http: StartServer) -> None:
    served = await start_http(host="0.0.0.0")
    assert (await call(served, "GET", "/", headers=HTML)).json["name"] == "fuseline"
    asked = await start_http(host="0.0.0.0", console=True)
    assert (await call(asked, "GET", "/", headers=HTML)).headers["content-type"].startswith("text/html")
    facts = (await get(asked, "/console/server")).json
    assert facts["load"]["allowed"] is False
    answer = await post(asked, LOAD)
    assert (answer.status, answer.error) == (403, facts["load"]["why_not"])


async def test_over_tls_the_page_may_have_a_name(start_http: StartServer, tmp_path: Path) -> None:
    """Another site's name leads to no server whose certificate is for it."""
    authority = Authority(tmp_path / "tls")
    served = await start_http(**authority.issue().settings)
    context = ssl.create_default_context(cafile=authority.ca)
    answer = await call_over_tls(served, context, "GET /console/server HTTP/1.1\r\nHost: fuseline.example")
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["tls"] is True
