"""The service's methods over HTTP, for clients that something between them and the server keeps from gRPC."""

import http.client
import json
import socket
import threading
import time
from http import HTTPStatus
from typing import TypeVar
from urllib.parse import quote, urlsplit

from google.protobuf.message import DecodeError, Message

from fuseline.protos.classify_pb2 import ClassifyRequest, ClassifyResponse, GetModelRequest, GetModelResponse
from fuseline.serve.client.client_tls import ClientTls, client_tls
from fuseline.serve.client.tls_failures import tls_failure
from fuseline.serve.errors import DeadlineError, FuselineError, InputError, RequestError, UnknownModelError
from fuseline.serve.services.statuses import ERROR_METADATA_KEY, HTTP_STATUS_OF_CODE, error_from_status

_PROTOBUF = {"Content-Type": "application/x-protobuf", "Accept": "application/x-protobuf"}
_MOST_MS = 2**32 - 1
RETRY_AFTER_MS_HEADER = "retry-after-ms"
"""Header with the milliseconds after which there is likely to be room, which Fuseline sends beside Retry-After."""
# Of several codes with one status the first that is listed.
_CODE_OF_STATUS = {status: code for code, status in reversed(HTTP_STATUS_OF_CODE.items())}

MessageT = TypeVar("MessageT", bound=Message)


def is_http(address: str) -> bool:
    """Return whether `address` is of HTTP rather than gRPC."""
    return address.lower().startswith(("http://", "https://"))


class HttpStub:
    """Stands in for gRPC's stub: the same messages to the HTTP port of one server, and the same errors.

    Each thread has a connection of its own, made by its first call. Methods raise the error that the server raised,
    `InputError` where no server answers, and `DeadlineError` where there is no answer within `timeout`, in seconds.
    """

    def __init__(self, address: str, tls: ClientTls | None = None, token: str | None = None) -> None:
        """Connect with the first call; to https:// by `tls`, or, without it, trusting whom this machine trusts.

        `token` is sent with each call. Raises `InputError` for an address that is no http://HOST[:PORT][/PATH] or
        https:// likewise.
        """
        try:
            url = urlsplit(address)
            self._host, self._port = url.hostname, url.port
        except ValueError as error:
            raise InputError(f"{address!r} is no address of HTTP ({error}); give http://HOST:PORT") from error
        if not self._host or url.query or url.fragment or url.username is not None:
            raise InputError(f"{address!r} is no address of HTTP; give http://HOST:PORT")
        self.address = address
        self._every_call = {} if token is None else {"Authorization": f"Bearer {token}"}
        self._path = url.path.rstrip("/")
        self._tls = tls or client_tls(address)
        self._of_thread = threading.local()
        self._connections: set[http.client.HTTPConnection] = set()

    def close(self) -> None:
        """Close every connection; calls under way end with an error."""
        for connection in list(self._connections):
            connection.close()

    def GetModel(self, request: GetModelRequest, timeout: float | None) -> GetModelResponse:  # noqa: N802
        """Describe a model; for an empty name, the server's only one."""
        name = request.model
        if not name:
            names = json.loads(self.call("GET", "/v1/models", b"", {}, timeout))["models"]
            if len(names) != 1:
                served = ", ".join(sorted(names)) or "none"
                raise UnknownModelError(f"{self.address} serves several models or none; name one of: {served}")
            (name,) = names
        path = f"/v1/models/{quote(name, safe='')}"
        if request.version:
            path += f"/versions/{quote(request.version, safe='')}"
        return self._message("GET", path, b"", timeout, GetModelResponse)

    def Classify(self, request: ClassifyRequest, timeout: float | None) -> ClassifyResponse:  # noqa: N802
        """Classify the images of one request, which the server refuses at once if it can't answer in time."""
        if timeout is not None:
            request.timeout_ms = min(max(1, int(timeout * 1000)), _MOST_MS)
        return self._message("POST", "/v1/classify", request.SerializeToString(), timeout, ClassifyResponse)

    def is_ready(self, timeout_s: float | None) -> bool:
        """Return whether the server takes requests."""
        status, _, _ = self._exchange("GET", "/readyz", b"", {}, timeout_s)
        return status == HTTPStatus.OK

    def _message(
        self, method: str, path: str, body: bytes, timeout_s: float | None, message: type[MessageT]
    ) -> MessageT:
        answer = self.call(method, path, body, _PROTOBUF, timeout_s)
        try:
            return message.FromString(answer)
        except DecodeError as error:
            raise InputError(f"what {self.address} answers is no {message.__name__}") from error

    def call(self, method: str, path: str, body: bytes, headers: dict[str, str], timeout_s: float | None) -> bytes:
        """Return the body of the answer to one request; raise as every method does, also for the status of an error."""
        status, fields, answer = self._exchange(method, path, body, headers, timeout_s)
        if status == HTTPStatus.OK:
            return answer
        raise self._error(status, fields, answer)

    def _exchange(
        self, method: str, path: str, body: bytes, headers: dict[str, str], timeout_s: float | None
    ) -> tuple[int, http.client.HTTPMessage, bytes]:
        if timeout_s is not None and timeout_s <= 0:
            raise self._too_late(timeout_s)
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        connection = self._connection()
        try:
            # A connection that the server closed while it was idle says so only now.
            is_used = connection.sock is not None
            try:
                return self._sent(connection, method, path, body, headers, deadline)
            except (http.client.RemoteDisconnected, ConnectionError):
                connection.close()
                if not is_used:
                    raise
                return self._sent(connection, method, path, body, headers, deadline)
        except TimeoutError as error:
            connection.close()
            raise self._too_late(timeout_s) from error
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            if (failure := tls_failure(error, self._tls)) is not None:
                distrusted = InputError(f"no connection to {self.address}: {failure}")
                distrusted.is_untaken = True
                raise distrusted from error
            # Another server's words may be many, and no text.
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            missing = InputError(
                f"no server answers at {self.address} ({reason}); is `fuseline serve` "
                "running there, and is this its --http-port?"
            )
            missing.may_pass = True
            missing.is_untaken = isinstance(error, ConnectionRefusedError | socket.gaierror)
            raise missing from error

    def _sent(
        self,
        connection: http.client.HTTPConnection,
        method: str,
        path: str,
        body: bytes,
        headers: dict[str, str],
        deadline: float | None,
    ) -> tuple[int, http.client.HTTPMessage, bytes]:
        connection.timeout = _left(deadline)
        if connection.sock is None:
            connection.connect()
        connection.sock.settimeout(_left(deadline))
        connection.request(method, self._path + path, body or None, headers | self._every_call)
        connection.sock.settimeout(_left(deadline))
        # An answer that fails half-way is closed too: it holds the socket, whatever becomes of the connection.
        with connection.getresponse() as response:
            return response.status, response.headers, response.read()

    def _connection(self) -> http.client.HTTPConnection:
        connection: http.client.HTTPConnection | None = getattr(self._of_thread, "connection", None)
        if connection is None:
            assert self._host is not None
            connection = (
                http.client.HTTPConnection(self._host, self._port)
                if self._tls is None
                else _TlsConnection(self._host, self._port, self._tls)
            )
            self._of_thread.connection = connection
            self._connections.add(connection)
        return connection

    def _too_late(self, timeout_s: float | None) -> DeadlineError:
        late = DeadlineError(f"no answer from {self.address} within {timeout_s:g} s; allow more time")
        late.is_unanswered = True
        return late

    def _error(self, status: int, fields: http.client.HTTPMessage, answer: bytes) -> FuselineError:
        message = _message_of(answer)
        name = fields.get(ERROR_METADATA_KEY)
        if name is None and message is None:
            return InputError(f"{self.address} answered with the status {status}; is this a Fuseline server?")
        code = _CODE_OF_STATUS.get(HTTPStatus(status))
        if code is None:
            return RequestError(f"{self.address} refused the request with the status {status}: {message}")
        return error_from_status(code, message or "", name, _retry_after_s(fields))


def _retry_after_s(fields: http.client.HTTPMessage) -> float | None:
    """Return the seconds of an answer's header retry-after-ms or Retry-After; None: it has none, or a date."""
    for name, unit_s in ((RETRY_AFTER_MS_HEADER, 0.001), ("retry-after", 1.0)):
        value = fields.get(name, "")
        if value.isdecimal() and len(value) < 10:
            return int(value) * unit_s
    return None


class _TlsConnection(http.client.HTTPSConnection):
    """A connection whose server has a name of its own."""

    def __init__(self, host: str, port: int | None, tls: ClientTls) -> None:
        super().__init__(host, port, context=tls.context)
        self._tls = tls

    def connect(self) -> None:
        http.client.HTTPConnection.connect(self)
        # It closes the socket that it was given if the handshake fails.
        self.sock = self._tls.context.wrap_socket(self.sock, server_hostname=self._tls.server_name or self.host)


def _left(deadline: float | None) -> float | None:
    if deadline is None:
        return None
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


def _message_of(answer: bytes) -> str | None:
    try:
        message = json.loads(answer)["error"]
    except (ValueError, LookupError, TypeError):
        return None
    return message if isinstance(message, str) else None
