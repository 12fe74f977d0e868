"""What a page of another site may have a browser ask of a server that asks for no token."""

import re
import ssl
from pathlib import Path

import pytest

from fuseline.serve.access.roles import ROLE_OF_OPERATION, Role
from tests.serve.access.token_files import TokenFile
from tests.serve.certificates import Authority
from tests.serve.conftest import Served, StartServer
from tests.serve.http.calls import Answer, call, call_over_tls

CHANGES = [its for its, role in ROLE_OF_OPERATION.items() if role is Role.ADMIN and not its.startswith("GET ")]
LOADED = "POST /v2/repository/models/colours/load"


async def asked(served: Served, operation: str, *, host: str | None = None, **fields: str) -> Answer:
    method, _, path = operation.partition(" ")
    path = re.sub(r"\{[^}]*\}", "nobody", path)
    headers = {name.replace("_", "-"): value for name, value in fields.items()}
    if host is not None:
        headers["Host"] = host
    return await call(served, method, path, headers=headers)


async def test_whatever_changes_the_server_is_refused_to_other_sites_and_to_nobody_else(
    start_http: StartServer,
) -> None:
    """Each is a POST without a preflight, which a form of any site can make, and which browsers mark so."""
    served = await start_http()
    own = f"http://127.0.0.1:{served.server.http_port}"
    assert "POST /v2/repository/models/{model}/load" in CHANGES
    for operation in CHANGES:
        for fields in (
            {"Origin": "https://evil.example"},
            {"Origin": "null"},
            {"Origin": own.replace("http://", "http://evil.")},
            {"Origin": "http://127.0.0.1:1"},
            {"Origin": own, "Sec_Fetch_Site": "cross-site"},
            {"Sec_Fetch_Site": "cross-site"},
            {"Sec_Fetch_Site": "same-site"},
        ):
            answer = await asked(served, operation, **fields)
            assert answer.status == 403, (operation, fields)
            assert "another site's page" in answer.error
        for fields in ({}, {"Origin": own}, {"Origin": own, "Sec_Fetch_Site": "same-origin"}):
            assert (await asked(served, operation, **fields)).status != 403, (operation, fields)


async def test_a_name_that_was_led_here_is_not_the_servers_own_to_a_browser(start_http: StartServer) -> None:
    """To the browser the page at evil.example and the server are one site then (DNS rebinding)."""
    served = await start_http()
    name = f"evil.example:{served.server.http_port}"
    for operation in CHANGES:
        answer = await asked(served, operation, host=name, Origin=f"http://{name}")
        assert answer.status == 403
        assert "neither an address nor localhost" in answer.error


@pytest.mark.parametrize("host", ["models.internal", "models.internal:8002", "10.1.2.3:8002"])
async def test_a_program_calls_the_server_by_any_name(start_http: StartServer, host: str) -> None:
    served = await start_http()
    assert (await asked(served, LOADED, host=host)).status not in {401, 403}


async def test_who_shows_a_token_may_come_from_anywhere(start_http: StartServer, tokens: TokenFile) -> None:
    """A page behind a proxy has another origin than the server's address, and a browser sends no token by itself."""
    served = await start_http(token_hashes=tokens.path)
    fields = {"Origin": "https://models.example", "Authorization": f"Bearer {tokens.admin}"}
    assert (await asked(served, LOADED, **fields)).status not in {401, 403}


async def test_a_clients_certificate_is_no_reason_to_trust_a_site(start_http: StartServer, tmp_path: Path) -> None:
    """A browser shows it whoever's page asks. The server's own tells that no other name was led here."""
    authority = Authority(tmp_path / "tls")
    served = await start_http(**authority.issue().settings, tls_client_ca=authority.ca)
    client = authority.issue("app", names=("app.example",))
    context = ssl.create_default_context(cafile=authority.ca)
    context.load_cert_chain(client.cert, client.key)
    for origin, refused in (("https://evil.example", True), ("https://models.example", False)):
        head = f"{LOADED} HTTP/1.1\r\nHost: models.example\r\nOrigin: {origin}"
        answer = await call_over_tls(served, context, head)
        assert answer.startswith(b"HTTP/1.1 403 ") is refused, answer
