"""Keeps pages of other sites from changing a server that asks for no token, by the browsers of who can reach it."""

import ipaddress
import re
from urllib.parse import urlsplit

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from fuseline.serve.access.roles import ROLE_OF_OPERATION, Role
from fuseline.serve.http.http_answers import refusal
from fuseline.serve.http.http_services import HttpServices
from fuseline.serve.http.json_text import shortened

_PORT = re.compile(r":\d*\Z")
_OWN = frozenset(("same-origin", "none"))


def changes_the_server(method: str, path: str) -> bool:
    """Return whether an operation, a method and a route's path, changes the server for everyone."""
    return method != "GET" and ROLE_OF_OPERATION.get(f"{method} {path}") is Role.ADMIN


def kept_from_other_sites(application: ASGIApp, services: HttpServices) -> ASGIApp:
    """Return `application`, which changes the server, for all but pages of other sites.

    What is no browser is let through. A browser sends the field Origin with each POST (Fetch, 3.2), and Sec-Fetch-Site,
    which no page can set, to hosts that it trusts, loopback among them (Fetch Metadata Request Headers, 2.3).
    """

    async def refusing_application(scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope)
        try:
            if "origin" in request.headers:
                refuse_foreign_name(request, services)
            if _is_of_another_site(request):
                raise HTTPException(
                    403,
                    "this is for the server's own page and for programs, not for another site's page "
                    f"({shortened(request.headers.get('origin', 'which names no origin'))})",
                )
        except HTTPException as error:
            await refusal(error.status_code, error.detail)(scope, receive, send)
            return
        await application(scope, receive, send)

    return refusing_application


def refuse_foreign_name(request: Request, services: HttpServices) -> None:
    """Raise `HTTPException` for a request of a browser to a name that another site may have led here.

    Where nobody is asked for a token, another site could have its own name lead to this address in its visitors'
    browsers, and then is, to them, the server's own page (DNS rebinding), unless TLS tells them that the server is
    another's. So the request must be for an address or localhost then.
    """
    # What is no browser may leave the field out.
    host = request.headers.get("host")
    is_known = services.gate is not None or services.settings.tls_cert is not None
    if not is_known and host is not None and not _is_address(host):
        raise HTTPException(
            403,
            f"the host {shortened(host)} is neither an address nor localhost: open the page by the server's address, "
            "or start it with --token-hashes FILE or TLS",
        )


def _is_of_another_site(request: Request) -> bool:
    site = request.headers.get("sec-fetch-site")
    if site is not None:
        return site not in _OWN
    origin = request.headers.get("origin")
    return origin is not None and _host_of(origin) != request.headers.get("host", "").lower()


def _host_of(origin: str) -> str | None:
    """Return host and port of an origin as a field Host has them; None for "null", and for what is none."""
    try:
        return urlsplit(origin).netloc.lower() or None
    except ValueError:
        return None


def _is_address(host: str) -> bool:
    """Return whether a field Host, which may have a port, names no other host than by its address, or as localhost."""
    name = _PORT.sub("", host.lower())
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        ipaddress.ip_address(name[1:-1] if name.startswith("[") and name.endswith("]") else name)
    except ValueError:
        return False
    return True
