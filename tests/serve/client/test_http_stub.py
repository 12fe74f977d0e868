"""What stands in for gRPC's stub over HTTP, against a real server and against what is none."""

import http.client
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager

import pytest

from fuseline.protos.classify_pb2 import ClassifyRequest, GetModelRequest, Image
from fuseline.serve import errors
from fuseline.serve.client import AsyncClient, Client
from fuseline.serve.client.http_stub import HttpStub
from tests.fakes.colours import encoded, plain


@contextmanager
def answering(*answers: bytes) -> Iterator[str]:
    """The address of a server that gives each connection one of `answers`, whatever it is asked, and closes it."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            for answer in answers:
                connection, _ = listener.accept()
                with connection:
                    connection.recv(2**16)
                    connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        thread.join(30)


def answer(status: str, body: bytes = b"", *fields: str) -> bytes:
    head = "\r\n".join((f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *fields))
    return f"{head}\r\n\r\n".encode() + body


@pytest.mark.parametrize(
    ("sent", "error_class", "reason"),
    [
        (b"not HTTP\r\n\r\n", errors.InputError, "no server answers at .* --http-port"),
        (answer("404 Not Found", b"<html>"), errors.InputError, "status 404; is this a Fuseline server"),
        (answer("502 Bad Gateway"), errors.InputError, "status 502"),
        (answer("200 OK", b"\xff"), errors.InputError, "no GetModelResponse"),
        (answer("413 Too Large", b'{"error":"64 MiB"}'), errors.RequestError, "status 413: 64 MiB"),
        (answer("400 Bad Request", b'{"error":"no"}', "fuseline-error: ImageError"), errors.ImageError, "no"),
        (answer("400 Bad Request", b'{"error":"no"}'), errors.RequestError, "no"),
        (
            answer("503 Unavailable", b'{"error":"no"}', "fuseline-error: BackendLostError"),
            errors.BackendLostError,
            "no",
        ),
        (answer("503 Unavailable", b'{"error":"no"}'), errors.ShuttingDownError, "no"),
    ],
)
def test_each_answer_that_is_none_is_an_error_of_the_tree(
    sent: bytes, error_class: type[errors.FuselineError], reason: str
) -> None:
    with (
        answering(sent) as address,
        closing(HttpStub(address)) as stub,
        pytest.raises(error_class, match=reason) as raised,
    ):
        stub.GetModel(GetModelRequest(model="m"), timeout=30)
    assert type(raised.value) is error_class


def test_the_time_to_wait_comes_with_the_error() -> None:
    sent = answer("429 Too Many", b'{"error":"full"}', "fuseline-error: OverloadedError", "retry-after-ms: 25")
    with (
        answering(sent) as address,
        closing(HttpStub(address)) as stub,
        pytest.raises(errors.OverloadedError) as raised,
    ):
        stub.GetModel(GetModelRequest(model="m"), timeout=30)
    assert raised.value.retry_after_s == 0.025


def test_a_connection_that_the_server_closed_meanwhile_is_made_again_once() -> None:
    with answering(answer("200 OK"), answer("503 Service Unavailable")) as address:
        stub = HttpStub(address)
        assert stub.is_ready(30)
        assert not stub.is_ready(30)
        stub.close()


def test_a_server_that_does_not_answer_in_time_is_a_deadline_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        client = Client(f"http://127.0.0.1:{silent.getsockname()[1]}")
        with pytest.raises(errors.DeadlineError, match="within 0.05 s"):
            client.model("m", timeout_s=0.05)
        client.close()


@pytest.mark.parametrize(
    "address", ["http://", "http://a:b", "http://a:99999", "http://a/?b=c", "http://me@a", "http://[a"]
)
def test_an_address_that_is_none_is_refused(address: str) -> None:
    with pytest.raises(errors.InputError, match="no address of HTTP"):
        Client(address)


def test_the_asynchronous_client_says_that_it_does_not_speak_http() -> None:
    with pytest.raises(errors.InputError, match="Client speaks"):
        AsyncClient("http://127.0.0.1:8002")


def test_threads_share_a_client(live_http_address: str) -> None:
    request = ClassifyRequest(images=[Image(encoded=encoded(plain("red")))])
    stub = HttpStub(live_http_address + "/")
    labels: list[str] = []

    def classify() -> None:
        for _ in range(5):
            answered = stub.Classify(ClassifyRequest.FromString(request.SerializeToString()), timeout=30)
            labels.append(answered.results[0].predictions[0].label)

    run_in_threads(classify, 4)
    stub.close()
    assert labels == ["red"] * 20


def run_in_threads(work: Callable[[], None], count: int) -> None:
    threads = [threading.Thread(target=work) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)


def test_the_time_that_a_client_gives_reaches_the_server(
    monkeypatch: pytest.MonkeyPatch, live_http_address: str
) -> None:
    bodies: list[bytes] = []
    send = http.client.HTTPConnection.request

    def recorded(connection: http.client.HTTPConnection, method: str, url: str, body: bytes, headers: object) -> None:
        bodies.append(body)
        send(connection, method, url, body, headers)  # type: ignore[arg-type]

    monkeypatch.setattr(http.client.HTTPConnection, "request", recorded)
    with Client(live_http_address) as client:
        client.classify(encoded(plain("red")), timeout_s=12.5)
    assert ClassifyRequest.FromString(bodies[0]).timeout_ms == 12500
