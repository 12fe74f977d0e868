"""Tokens of clients: sent with each call, and never in clear over a network unless that is allowed."""

import asyncio
from pathlib import Path

import pytest

from fuseline.serve.access.token_file import new_token
from fuseline.serve.client import AsyncClient, Client
from fuseline.serve.client.client_token import token_for, token_in_file
from fuseline.serve.errors import ForbiddenError, InputError, UnauthenticatedError
from tests.fakes.colours import plain
from tests.serve.access.token_files import TokenFile
from tests.serve.conftest import Served, StartServer
from tests.serve.processes import free_port

TOKEN = new_token()
PLAIN_ELSEWHERE = ("10.0.0.7:8001", "gpu-host:8001", "dns:///gpu-host:8001", "http://gpu-host:8002", "http://10.0.0.7")
HERE = ("127.0.0.1:8001", "[::1]:8001", "localhost:8001", "unix:/run/fuseline.sock", "http://127.0.0.1:8002")


@pytest.fixture
async def guarded(start_server: StartServer, tokens: TokenFile) -> Served:
    return await start_server(token_hashes=tokens.path, http_port=free_port())


def addresses(served: Served) -> tuple[str, str]:
    return f"127.0.0.1:{served.server.port}", f"http://127.0.0.1:{served.server.http_port}"


async def test_both_doors_answer_a_client_with_a_token_of_its_own_or_of_the_environment(
    guarded: Served, tokens: TokenFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    def labels(address: str, token: str | None) -> list[str]:
        with Client(address, token=token) as client:
            found = [client.model().name, client.classify(plain("red")).results[0].predictions[0].label]
            (streamed,) = client.classify_stream([plain("blue")])
            assert streamed.answer is not None
            return [*found, streamed.answer.results[0].predictions[0].label]

    for address in addresses(guarded):
        assert await asyncio.to_thread(labels, address, tokens.infer) == ["colours", "red", "blue"]
        with pytest.raises(UnauthenticatedError, match="FUSELINE_TOKEN"):
            await asyncio.to_thread(labels, address, None)
        with pytest.raises(UnauthenticatedError, match="doesn't know the token"):
            await asyncio.to_thread(labels, address, TOKEN)
    monkeypatch.setenv("FUSELINE_TOKEN", tokens.infer)
    for address in addresses(guarded):
        assert await asyncio.to_thread(labels, address, None) == ["colours", "red", "blue"]


async def test_an_async_client_sends_it_with_calls_and_streams(guarded: Served, tokens: TokenFile) -> None:
    address, _ = addresses(guarded)
    async with AsyncClient(address, token=tokens.infer) as client:
        assert (await client.classify(plain("red"))).results[0].predictions[0].label == "red"
        assert [item.error async for item in client.classify_stream([plain("red")])] == [None]
    async with AsyncClient(address) as stranger:
        with pytest.raises(UnauthenticatedError):
            await stranger.classify(plain("red"))
        with pytest.raises(UnauthenticatedError):
            [item async for item in stranger.classify_stream([plain("red")])]


@pytest.mark.parametrize("address", PLAIN_ELSEWHERE)
def test_a_token_does_not_leave_this_machine_in_clear_unless_that_is_allowed(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for make in (Client, AsyncClient):
        if make is AsyncClient and address.startswith("http"):
            continue
        with pytest.raises(InputError, match=r"would go to .* unencrypted") as caught:
            make(address, token=TOKEN)
        assert TOKEN not in str(caught.value)
    with Client(address, token=TOKEN, token_in_clear=True):
        pass
    monkeypatch.setenv("FUSELINE_TOKEN", TOKEN)
    with pytest.raises(InputError, match="unencrypted"):
        Client(address)


def test_a_token_goes_to_this_machine_and_over_tls() -> None:
    for address in HERE:
        assert token_for(address, TOKEN, is_encrypted=False, in_clear=False) == TOKEN
    for address in PLAIN_ELSEWHERE:
        assert token_for(address, TOKEN, is_encrypted=True, in_clear=False) == TOKEN
        assert token_for(address, None, is_encrypted=False, in_clear=False) is None
    with Client("https://gpu-host:8002", token=TOKEN):
        pass


@pytest.mark.parametrize("token", ["", "two words", "line\nend", "x\r\nHost: other", "naïve"])
def test_what_could_not_be_sent_or_would_be_more_than_a_token_is_refused_and_not_told(token: str) -> None:
    with pytest.raises(InputError) as caught:
        token_for("127.0.0.1:8001", token, is_encrypted=False, in_clear=False)
    assert not token or token not in str(caught.value)


def test_a_token_file_holds_the_token_alone(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(f"{TOKEN}\n")
    assert token_in_file(file) == TOKEN
    for content in ("", " \n", "x" * 5000):
        file.write_text(content)
        with pytest.raises(InputError, match="holds no token"):
            token_in_file(file)
    with pytest.raises(InputError, match="can't be read: No such file"):
        token_in_file(tmp_path / "missing")


def test_errors_about_access_are_told_apart() -> None:
    assert not issubclass(ForbiddenError, UnauthenticatedError)
    assert (ForbiddenError.exit_code, UnauthenticatedError.exit_code) == (2, 2)
