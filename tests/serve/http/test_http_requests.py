"""What HTTP/1 allows, and what it does not: each request gets one clear answer, and the next one is served."""

import asyncio
import zlib

import pytest
from starlette.datastructures import UploadFile
from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from tests.serve.http.apps import Held, Long, echo, failing
from tests.serve.http.apps import answer as send_answer
from tests.serve.http.http_process import GET, post, serving

pytestmark = pytest.mark.usefixtures("plain_or_tls")


async def test_a_body_is_received_whole_however_it_is_cut() -> None:
    body = bytes(range(256)) * 400
    async with serving(echo) as http, http.connection() as connection:
        whole = post(body, target="/a%20b?x=1")
        for cut in (1, 30, 70, 5000, 70_000):
            await connection.send(whole[:cut])
            await asyncio.sleep(0.01)
            answer = await connection.ask(whole[cut:])
            assert answer.body == b"POST /a b?x=1 102400 " + body[:20]


async def test_a_chunked_body_is_received_whole_and_its_trailers_are_left_out() -> None:
    head = b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"
    async with serving(echo) as http, http.connection() as connection:
        sent = head + b"3\r\nabc\r\n4;extension=1\r\ndefg\r\n0\r\nTrailer: no\r\n\r\n"
        assert (await connection.ask(sent)).body == b"POST /? 7 abcdefg"
        for byte in sent:
            await connection.send(bytes([byte]))
        assert (await connection.answer()).body == b"POST /? 7 abcdefg"


async def test_a_large_form_is_parsed() -> None:
    """Large bodies are collected in pages, which have not all methods that a parser of forms needs."""
    picture = bytes(range(256)) * 4000

    async def answer_form(scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        async with request.form() as form:
            uploads = [value for value in form.values() if isinstance(value, UploadFile)]
            assert [await upload.read() for upload in uploads] == [picture] * 3
        await send_answer(send, b"parsed")

    part = b'--cut\r\nContent-Disposition: form-data; name="f%d"; filename="a.jpg"\r\n\r\n%b\r\n'
    body = b"".join(part % (n, picture) for n in range(3)) + b"--cut--\r\n"
    async with serving(answer_form) as http:
        assert (await http.ask(post(body, "Content-Type: multipart/form-data; boundary=cut"))).body == b"parsed"


async def test_pipelined_requests_are_answered_in_their_order() -> None:
    requests = [post(b"x" * (n * 37), target=f"/{n}") for n in range(700)]
    async with serving(echo) as http, http.connection() as connection:
        sending = asyncio.create_task(connection.send(b"".join(requests)))
        for n in range(700):
            assert (await connection.answer()).body.startswith(b"POST /%d? %d " % (n, n * 37))
        await sending


async def test_a_malformed_request_after_good_ones_is_refused_in_its_turn() -> None:
    held = Held()
    async with serving(held) as http, http.connection() as connection:
        await connection.send(post(b"1") + post(b"2") + b"\x00\x01\r\n\r\n" + GET)
        await held.came.acquire()
        held.go.set()
        assert (await connection.answer()).body == b"POST /? 1 1"
        assert (await connection.answer()).body == b"POST /? 1 2"
        refusal = await connection.answer()
        assert refusal.status == 400
        assert "no valid HTTP/1.1 request" in refusal.error
        assert await connection.is_closed()


@pytest.mark.parametrize(
    ("data", "status", "message"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400, "no valid HTTP"),
        (b"GET / HTTP/1.1\r\nBad Header: x\r\n\r\n", 400, "no valid HTTP"),
        (b"GET http://[ HTTP/1.1\r\n\r\n", 400, "no valid HTTP"),
        (b"GET /\xff HTTP/1.1\r\n\r\n", 400, "no valid HTTP"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400, "no valid HTTP"),
        (b"GET / HTTP/2.0\r\n\r\n", 505, "1.1"),
        (b"GET /\r\n\r\n", 505, "1.1"),
        (b"CONNECT there:80 HTTP/1.1\r\n\r\n", 501, "no proxy"),
        (b"POST / HTTP/1.1\r\nContent-Length: -1\r\n\r\n", 400, "Content-Length"),
        (b"POST / HTTP/1.1\r\nContent-Length: 99999999999999999999999\r\n\r\n", 400, "Content-Length"),
        (b"POST / HTTP/1.1\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n", 400, "Transfer-Encoding"),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 501, "chunked"),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n", 400, "chunk"),
        (b"GET /\xff HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n", 400, "no valid HTTP"),
    ],
)
async def test_a_malformed_request_is_refused_and_the_next_connection_served(
    data: bytes, status: int, message: str
) -> None:
    async with serving(echo) as http:
        async with http.connection() as connection:
            refusal = await connection.ask(data)
            assert (refusal.status, refusal.headers["connection"]) == (status, "close")
            assert message in refusal.error
            assert await connection.is_closed()
        assert (await http.ask(GET)).status == 200


async def test_a_malformed_request_after_a_wish_for_another_protocol_is_refused() -> None:
    wish = GET.replace(b"\r\n\r\n", b"\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n")
    async with serving(echo) as http, http.connection() as connection:
        await connection.send(wish + b"\x00\x01\r\n\r\n")
        assert (await connection.answer()).status == 200
        refusal = await connection.answer()
        assert (refusal.status, "no valid HTTP/1.1 request" in refusal.error) == (400, True)
    async with serving(echo) as http, http.connection() as connection:
        refusal = await connection.ask(wish.replace(b" / ", b" /\xff ") + GET)
        assert (refusal.status, await connection.is_closed()) == (400, True)


@pytest.mark.parametrize(("target", "told"), [("http://here", "/?"), ("http://here:80?a=b", "/?a=b")])
async def test_a_target_with_an_authority_and_no_path_is_the_root(target: str, told: str) -> None:
    async with serving(echo) as http:
        answer = await http.ask(GET.replace(b" / ", f" {target} ".encode()))
        assert (answer.status, answer.body) == (200, f"GET {told} 0 ".encode())


async def test_a_length_with_zeros_before_it_is_that_length() -> None:
    async with serving(echo) as http:
        answer = await http.ask(post(b"abc").replace(b"Length: 3", b"Length: " + b"0" * 5000 + b"3"))
        assert (answer.status, answer.body) == (200, b"POST /? 3 abc")


async def test_http_1_0_is_answered_and_closed() -> None:
    async with serving(echo) as http, http.connection() as connection:
        answer = await connection.ask(b"POST /old HTTP/1.0\r\nContent-Length: 2\r\n\r\nhi")
        assert answer.body == b"POST /old? 2 hi"
        assert answer.headers["connection"] == "close"
        assert await connection.is_closed()


async def test_connection_close_is_heeded_and_head_has_no_body() -> None:
    async with serving(echo) as http, http.connection() as connection:
        await connection.send(b"HEAD / HTTP/1.1\r\n\r\n")
        answer = await connection.answer(has_body=False)
        assert answer.headers["content-length"] == "10"
        closing = await connection.ask(b"GET / HTTP/1.1\r\nConnection: close\r\n\r\n" + GET)
        assert closing.headers["connection"] == "close"
        assert await connection.is_closed()


@pytest.mark.parametrize("protocol", ["h2c", "websocket"])
async def test_a_wish_for_another_protocol_is_ignored_and_nothing_after_it_lost(protocol: str) -> None:
    upgrade = ("Connection: Upgrade, HTTP2-Settings", f"Upgrade: {protocol}", "HTTP2-Settings: AAMAAABk")
    async with serving(echo) as http, http.connection() as connection:
        without_body = post(b"", *upgrade).replace(b"Content-Length: 0\r\n", b"")
        await connection.send(post(b"abc", *upgrade, target="/1") + without_body + post(b"d", target="/3"))
        assert (await connection.answer()).body == b"POST /1? 3 abc"
        assert (await connection.answer()).body == b"POST /? 0 "
        assert (await connection.answer()).body == b"POST /3? 1 d"
        big = post(b"x" * 100_000, *upgrade)
        await connection.send(big[:300])
        assert (await connection.ask(big[300:])).body.startswith(b"POST /? 100000 ")


async def test_a_client_that_expects_100_gets_it_before_its_body() -> None:
    async with serving(echo, max_body_bytes=1000) as http:
        async with http.connection() as connection:
            whole = post(b"abc", "Expect: 100-continue")
            assert (await connection.ask(whole[:-3])).status == 100
            assert (await connection.ask(b"abc")).body == b"POST /? 3 abc"
        # A body that is too large is refused before it is sent.
        async with http.connection() as connection:
            assert (await connection.ask(post(b"x" * 1001, "Expect: 100-continue")[:-1001])).status == 413


async def test_a_client_that_goes_away_cancels_its_request_alone() -> None:
    held = Held()
    async with serving(held) as http, http.connection() as other:
        await other.send(GET)
        await held.came.acquire()
        async with http.connection() as connection:
            await connection.send(GET + post(b"a second one, which waits"))
            await held.came.acquire()
        await held.ended.acquire()
        assert held.cancelled == 1
        held.go.set()
        assert (await other.answer()).status == 200


async def test_an_unexpected_error_is_500_with_an_id_and_the_next_request_is_served(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with serving(failing) as http, http.connection() as connection:
        answer = await connection.ask(GET)
        assert answer.status == 500
        assert "secret" not in answer.error
        assert answer.error.rpartition(" ")[2] in caplog.text
        assert "secret" in caplog.text


@pytest.mark.parametrize(
    ("encoding", "body"),
    [
        ("gzip", zlib.compress(b"abc", wbits=31)),
        ("x-gzip", zlib.compress(b"abc", wbits=31)),
        ("deflate", zlib.compress(b"abc")),
        ("deflate", zlib.compress(b"abc", wbits=-15)),
        ("GZIP", zlib.compress(b"abc" + bytes(5_000_000), 1, wbits=31)),
        ("identity", b"abc"),
    ],
)
async def test_a_compressed_body_reaches_the_handler_as_it_was(encoding: str, body: bytes) -> None:
    async with serving(echo) as http:
        answer = await http.ask(post(body, f"Content-Encoding: {encoding}"))
        size = 5_000_003 if encoding == "GZIP" else 3
        assert answer.body.startswith(b"POST /? %d abc" % size)


@pytest.mark.parametrize(
    ("encoding", "body", "status", "message"),
    [
        ("gzip", b"no gzip", 400, "not of its Content-Encoding gzip"),
        ("gzip", zlib.compress(b"abc", wbits=31)[:-3], 400, "ends before"),
        ("gzip", b"", 400, "ends before"),
        ("gzip", zlib.compress(b"abc", wbits=31) * 2, 400, "bytes follow"),
        ("deflate", zlib.compress(b"abc") + b"x", 400, "bytes follow"),
        ("br", b"abc", 415, "gzip and deflate"),
        ("gzip, gzip", b"abc", 415, "gzip and deflate"),
        ("x" * 900, b"abc", 415, "..."),
    ],
)
async def test_a_body_that_cannot_be_decompressed_is_refused(
    encoding: str, body: bytes, status: int, message: str
) -> None:
    async with serving(echo) as http:
        answer = await http.ask(post(body, f"Content-Encoding: {encoding}"))
        assert answer.status == status
        assert message in answer.error
        assert len(answer.error) < 200
        assert (await http.ask(GET)).status == 200


async def test_a_long_answer_is_read_whole() -> None:
    async with serving(Long(20_000_000)) as http:
        assert len((await http.ask(GET)).body) == 20_000_000
