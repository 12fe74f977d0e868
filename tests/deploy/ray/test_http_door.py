import gzip
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fuseline.deploy.ray.http_door import HttpDoor
from fuseline.serve.http.app import http_app
from fuseline.serve.server_core import ServerCore
from tests.deploy.ray.conftest import StartCore
from tests.serve.access.token_files import written_token_file

INFER = "/v2/models/colours/infer"


def red_json(rows: int = 1) -> bytes:
    pixels = np.full((rows, 8, 8, 3), (255, 0, 0), np.uint8)
    image = {"name": "image", "shape": list(pixels.shape), "datatype": "UINT8", "data": pixels.ravel().tolist()}
    return json.dumps({"inputs": [image]}).encode()


class Answer:
    def __init__(self, messages: Sequence[Any]) -> None:
        self.sent = messages

    @property
    def status(self) -> int:
        return int(self.sent[0]["status"])

    @property
    def headers(self) -> dict[bytes, bytes]:
        return dict(self.sent[0]["headers"])

    @property
    def json(self) -> Any:
        return json.loads(b"".join(message["body"] for message in self.sent[1:]))


async def ask(
    door: HttpDoor,
    path: str,
    parts: Sequence[bytes] = (b"",),
    *,
    method: str = "POST",
    headers: Sequence[tuple[bytes, bytes]] = (),
    whole: bool = True,
    prefix: str = "",
) -> Answer:
    """Send a request whose body comes in `parts`, as Ray's proxy hands it on."""
    messages: list[Any] = [
        {"type": "http.request", "body": part, "more_body": not whole or index + 1 < len(parts)}
        for index, part in enumerate(parts)
    ]
    messages.append({"type": "http.disconnect"})
    sent: list[Any] = []

    async def receive() -> Any:
        return messages.pop(0)

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": method,
        "path": path,
        "raw_path": path.encode(),
        "root_path": prefix,
        "query_string": b"",
        "headers": list(headers),
        "client": ("10.0.0.7", 50000),
        "server": ("10.0.0.1", 8002),
        "scheme": "http",
        "http_version": "1.1",
    }
    await door(scope, receive, send)
    return Answer(sent)


def door_of(core: ServerCore, max_body_bytes: int = 2**20) -> HttpDoor:
    return HttpDoor(http_app(core.http_services()), max_body_bytes=max_body_bytes, gate=core.gate)


async def test_a_request_is_answered_however_its_body_comes(start_core: StartCore) -> None:
    door, body = door_of(await start_core()), red_json()
    whole = await ask(door, INFER, [body])
    in_parts = await ask(door, INFER, [body[:100], b"", body[100:], b""])
    assert (whole.status, in_parts.status) == (200, 200)
    assert whole.json["outputs"] == in_parts.json["outputs"]
    assert int(np.argmax(whole.json["outputs"][0]["data"])) == 0


async def test_an_application_below_a_prefix_answers_there(start_core: StartCore) -> None:
    door = door_of(await start_core())
    assert (await ask(door, "/shop" + INFER, [red_json()], prefix="/shop")).status == 200
    index = await ask(door, "/shop", method="GET", prefix="/shop")
    assert "http://10.0.0.1:8002/shop/v1/classify" in index.json["classify"]
    assert (await ask(door, INFER, [red_json()])).status == 200


async def test_a_compressed_body_is_read(start_core: StartCore) -> None:
    door = door_of(await start_core())
    answer = await ask(door, INFER, [gzip.compress(red_json())], headers=[(b"content-encoding", b"gzip")])
    assert answer.status == 200
    unknown = await ask(door, INFER, [red_json()], headers=[(b"content-encoding", b"br")])
    assert (unknown.status, unknown.headers[b"accept-encoding"]) == (415, b"gzip, deflate")


@pytest.mark.parametrize("told", [True, False])
async def test_a_body_above_the_limit_is_refused(told: bool, start_core: StartCore) -> None:
    door, body = door_of(await start_core(), 1000), red_json(2)
    headers = [(b"content-length", b"%d" % len(body))] if told else []
    answer = await ask(door, INFER, [body[:600], body[600:]], headers=headers)
    assert answer.status == 413
    assert answer.json["error"].startswith("the body has more than 1000 bytes")


async def test_a_large_body_is_read_whole(start_core: StartCore) -> None:
    answer = await ask(door_of(await start_core(), 2**23), INFER, [red_json(100) + b" " * 2**20])
    assert answer.json["outputs"][0]["shape"] == [100, 4]


async def test_a_client_that_goes_before_its_body_is_whole_gets_no_answer(start_core: StartCore) -> None:
    answer = await ask(door_of(await start_core()), INFER, [red_json()[:50]], whole=False)
    assert answer.sent == []


async def test_a_clients_id_of_a_request_comes_back(start_core: StartCore) -> None:
    door = door_of(await start_core())
    answer = await ask(door, "/v2/models/nope", method="GET", headers=[(b"x-request-id", b"mine")])
    assert (answer.status, answer.headers[b"x-request-id"]) == (404, b"mine")
    too_large = await ask(door_of(await start_core(), 1), INFER, [b"xx"], headers=[(b"x-request-id", b"mine")])
    assert (too_large.status, too_large.headers[b"x-request-id"]) == (413, b"mine")


async def test_where_tokens_are_asked_for_a_request_needs_one_but_for_probes(
    start_core: StartCore, tmp_path: Path
) -> None:
    tokens = written_token_file(tmp_path)
    door = door_of(await start_core(token_hashes=tokens.path))
    assert (await ask(door, INFER, [red_json()])).status == 401
    assert (await ask(door, "/readyz", method="GET")).status == 200
    bearer = [(b"authorization", f"Bearer {tokens.infer}".encode())]
    assert (await ask(door, INFER, [red_json()], headers=bearer)).status == 200
    assert (await ask(door, "/v2/repository/models/colours/load", headers=bearer)).status == 403


async def test_a_fault_of_the_application_is_told_by_an_id_only(caplog: pytest.LogCaptureFixture) -> None:
    async def fail(*_: object) -> None:
        raise ZeroDivisionError("a secret of the server's")

    answer = await ask(HttpDoor(fail, max_body_bytes=1, gate=None), "/")
    assert answer.status == 500
    assert "secret" not in answer.json["error"]
    assert "a secret of the server's" in caplog.text


async def test_a_websocket_is_closed() -> None:
    async def never(*_: object) -> None:
        raise AssertionError

    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    await HttpDoor(never, max_body_bytes=1, gate=None)({"type": "websocket"}, never, send)  # type: ignore[arg-type]
    assert sent == [{"type": "websocket.close"}]
