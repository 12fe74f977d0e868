"""The gate before the operations of the HTTP port."""

from collections.abc import Iterable, MutableMapping
from http import HTTPStatus
from typing import Any

from starlette.types import ASGIApp, Receive, Scope, Send

from fuseline.serve.access.gate import Gate
from fuseline.serve.access.roles import OPEN, ROLE_OF_OPERATION, is_open
from fuseline.serve.errors import FuselineError, UnauthenticatedError
from fuseline.serve.http.call_of_scope import IDENTITY_KEY
from fuseline.serve.http.http_answers import BEARER, error_answer
from fuseline.serve.http.refusal import Refusal
from fuseline.serve.services.statuses import ERROR_METADATA_KEY, status_from_error


def identify(gate: Gate, scope: MutableMapping[str, Any], headers: Iterable[tuple[bytes, bytes]]) -> None:
    """Note in `scope` who makes the request, whose head is there and whose body is not.

    Raises `Refusal` where a token is needed, for any path but the open ones, and isn't a known one: what such a client
    would send more is not kept.
    """
    if is_open(scope["path"]):
        return
    try:
        scope[IDENTITY_KEY] = gate.identify(
            [value.decode("latin-1") for name, value in headers if name == b"authorization"]
        )
    except UnauthenticatedError as error:
        raise Refusal(
            HTTPStatus.UNAUTHORIZED,
            str(error),
            (
                (b"www-authenticate", BEARER.encode()),
                (ERROR_METADATA_KEY.encode(), type(error).__name__.encode()),
            ),
        ) from error


def guarded(application: ASGIApp, operation: str, gate: Gate) -> ASGIApp:
    """Return `application` for callers of the role that `operation`, a method and a route's path, needs.

    One that is not in `ROLE_OF_OPERATION` is refused, whoever calls it.
    """
    if operation in ROLE_OF_OPERATION and ROLE_OF_OPERATION[operation] is OPEN:
        return application
    role = ROLE_OF_OPERATION.get(operation)

    async def refusing_application(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            identity = scope.get(IDENTITY_KEY)
            if identity is None:
                raise UnauthenticatedError("this request needs a token")
            if role is None:
                raise gate.unknown("this path")
            gate.check(identity, role, operation)
        except FuselineError as error:
            await error_answer(status_from_error(error))(scope, receive, send)
            return
        await application(scope, receive, send)

    return refusing_application
