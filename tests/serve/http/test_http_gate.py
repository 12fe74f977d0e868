"""Tokens over HTTP: every operation, by a real server."""

import asyncio
import json
import re

import pytest

from fuseline.serve.access.roles import OPEN, ROLE_OF_OPERATION, Role, is_open
from fuseline.serve.access.token_file import new_token
from fuseline.serve.http.app import OPERATIONS, PROBES
from fuseline.serve.http.console_routes import EVENTS
from tests.fakes.colours import encoded, plain
from tests.serve.access.token_files import TokenFile, withdraw
from tests.serve.conftest import Served, StartServer
from tests.serve.http.calls import Answer, call
from tests.serve.http.http_process import Connection, post


@pytest.fixture
async def guarded(start_http: StartServer, tokens: TokenFile) -> Served:
    return await start_http(token_hashes=tokens.path)


async def answer_to(served: Served, operation: str, token: str | None) -> Answer:
    method, _, path = operation.partition(" ")
    path = re.sub(r"\{model\}", "colours", path)
    path = re.sub(r"\{version\}", "1", path)
    path = re.sub(r"\{(region:path|repository|index)\}", "nobody", path)
    path = re.sub(r"\{file\}", "index.html", path)
    if path == EVENTS:
        method = "HEAD"  # a feed has no end
    return await call(served, method, path, headers={} if token is None else {"Authorization": f"Bearer {token}"})


async def test_every_operation_is_in_the_table_and_refused_to_who_may_not_call_it(
    guarded: Served, tokens: TokenFile
) -> None:
    walked = [f"{operation.method} {path}" for operation in OPERATIONS for path in operation.paths]
    assert set(walked) <= set(ROLE_OF_OPERATION)
    for operation in walked:
        role = ROLE_OF_OPERATION[operation]
        if role is OPEN:
            assert (await answer_to(guarded, operation, None)).status == 200, operation
            continue
        for token in (None, new_token()):
            answer = await answer_to(guarded, operation, token)
            assert answer.status == 401, operation
            assert answer.headers["www-authenticate"] == "Bearer"
            assert answer.headers["fuseline-error"] == "UnauthenticatedError"
            assert token is None or token.encode() not in answer.body
        answer = await answer_to(guarded, operation, tokens.infer)
        if role is Role.ADMIN:
            assert (answer.status, answer.headers["fuseline-error"]) == (403, "ForbiddenError"), operation
            assert (await answer_to(guarded, operation, tokens.admin)).status not in {401, 403}, operation
        else:
            assert answer.status not in {401, 403}, operation


async def test_an_operation_that_is_in_no_role_is_refused_even_to_an_admin(
    start_http: StartServer, tokens: TokenFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(ROLE_OF_OPERATION, "GET /v1/models")  # type: ignore[arg-type]
    served = await start_http(token_hashes=tokens.path)
    answer = await answer_to(served, "GET /v1/models", tokens.admin)
    assert (answer.status, answer.error) == (403, "this path is in no role, so no token allows it")


async def test_probes_are_open_and_a_path_that_is_not_served_tells_a_stranger_nothing(
    guarded: Served, tokens: TokenFile
) -> None:
    assert all(is_open(path.decode()) for path in PROBES)
    assert (await answer_to(guarded, "GET /no/such/path", None)).status == 401
    assert (await answer_to(guarded, "GET /no/such/path", tokens.infer)).status == 404
    for path in ("/healthz/", "/Healthz", "//healthz", "/v2/health/live/../../models/colours"):
        assert (await answer_to(guarded, f"GET {path}", None)).status == 401, path
    assert (await answer_to(guarded, "HEAD /v1/models", None)).status == 401
    assert (await answer_to(guarded, "HEAD /v1/models", tokens.infer)).status == 200


async def test_a_picture_is_classified_for_who_has_a_token(guarded: Served, tokens: TokenFile) -> None:
    picture = encoded(plain("blue"), "PNG")
    headers = {"authorization": f"bearer {tokens.infer}"}
    answer = await call(guarded, "POST", "/v1/classify", picture, headers)
    assert json.loads(answer.body)["results"][0]["predictions"][0]["label"] == "blue"


async def test_a_strangers_body_is_not_waited_for(guarded: Served) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", guarded.server.http_port)
    connection = Connection(reader, writer)
    try:
        async with asyncio.timeout(20):
            answer = await connection.ask(
                b"POST /v1/classify HTTP/1.1\r\nHost: here\r\nContent-Length: 60000000\r\n\r\n"
            )
            assert (answer.status, answer.headers["connection"]) == (401, "close")
    finally:
        writer.transport.abort()


async def test_a_withdrawn_token_is_refused_on_the_connection_that_it_came_over_and_a_body_under_way_is_answered(
    guarded: Served, tokens: TokenFile
) -> None:
    picture, field = encoded(plain("blue"), "PNG"), f"Authorization: Bearer {tokens.infer}"
    request = post(picture, field, target="/v1/classify")
    reader, writer = await asyncio.open_connection("127.0.0.1", guarded.server.http_port)
    other_reader, other_writer = await asyncio.open_connection("127.0.0.1", guarded.server.http_port)
    connection, other = Connection(reader, writer), Connection(other_reader, other_writer)
    try:
        async with asyncio.timeout(20):
            assert (await connection.ask(request)).status == 200
            begun = post(picture, field, "Expect: 100-continue", target="/v1/classify")
            assert (await connection.ask(begun[: -len(picture)])).status == 100
            withdraw(tokens, "shop")
            while (answer := await other.ask(request)).status == 200:  # noqa: ASYNC110 the server tells no one
                # The file is read again within a second.
                await asyncio.sleep(0.05)
            assert (answer.status, answer.headers["fuseline-error"]) == (401, "UnauthenticatedError")
            assert (await connection.ask(picture)).status == 200
            assert (await connection.ask(request)).status == 401
    finally:
        writer.transport.abort()
        other_writer.transport.abort()
