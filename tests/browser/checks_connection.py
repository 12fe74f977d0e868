"""The page while its server comes, goes and asks for tokens."""

import signal
from pathlib import Path

import pytest
from playwright.sync_api import expect

from tests.browser.conftest import OpenPage, StartServer, run
from tests.fakes.colours import encoded, plain, write_colours_package
from tests.serve.access.token_files import TokenFile, withdraw
from tests.serve.certificates import Authority

RED = ("red.png", encoded(plain("red")))
GREEN = ("green.png", encoded(plain("green")))


def port_of(address: str) -> int:
    return int(address.rpartition(":")[2])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=lambda number: number.name)
def test_a_page_says_that_its_server_ended_and_was_started_anew(
    colours_package: Path, start_server: StartServer, open_page: OpenPage, number: signal.Signals
) -> None:
    server = start_server(colours_package)
    page = open_page(server).ready()
    page.drop(RED)
    expect(page.answer).to_contain_text("red")
    # What is lost midway is told as another error than what finds nobody.
    page.expect_failed_calls("net::ERR_")
    server.process.send_signal(number)
    server.end()
    expect(page.connection).to_contain_text("Trying again")
    assert server.http_address is not None
    start_server(colours_package, port=port_of(server.address), http_port=port_of(server.http_address))
    expect(page.connection).to_contain_text("the server was started anew", timeout=20_000)
    page.drop(GREEN)
    expect(page.answer).to_contain_text("green")


@pytest.fixture
def tokens(tmp_path: Path) -> TokenFile:
    """A file of hashes and its tokens, made by the command."""
    file = tmp_path / "hashes"
    made = [
        run("token", "new", "--name", name, "--role", role, "--file", file).strip()
        for name, role in (("shop", "infer"), ("deployer", "admin"))
    ]
    return TokenFile(file, *made)


def test_a_server_with_tokens_is_shown_to_who_has_one(
    tokens: TokenFile, tmp_path: Path, start_server: StartServer, open_page: OpenPage
) -> None:
    write_colours_package(tmp_path / "models" / "colours")
    explicit = ("--model-repository", tmp_path / "models", "--model-control-mode", "explicit", "--load-model", "*")
    server = start_server(*explicit, "--token-hashes", tokens.path)
    page = open_page(server)
    page.expect_failed_calls("401")
    form = page.page.get_by_label("Token of this server")
    expect(form).to_be_visible()
    expect(form).to_be_focused()
    alert = page.page.locator("header").get_by_role("alert")
    expect(alert).to_have_text("")

    form.fill("fl_wrong")
    page.page.get_by_role("button", name="Use it").click()
    expect(page.connection).to_have_text("The server refuses this token")
    expect(alert).not_to_have_text("")
    expect(form).to_have_value("")

    form.fill(tokens.infer)
    page.page.keyboard.press("Enter")
    expect(page.connection).to_have_text("Connected")
    expect(form).to_be_hidden()
    page.drop(RED)
    expect(page.answer).to_contain_text("red")
    models = page.section("Models")
    expect(models.get_by_text("colours").first).to_be_visible()
    expect(models.get_by_role("button", name="Unload")).to_have_count(0)
    # It is kept as long as the tab, and nowhere else.
    page.page.reload()
    expect(page.connection).to_have_text("Connected")
    assert page.page.evaluate("localStorage.length") == 0
    assert page.page.context.cookies() == []

    withdraw(tokens, "shop")
    expect(form).to_be_visible(timeout=20_000)
    expect(page.connection).to_have_text("The server refuses this token")

    form.fill(tokens.admin)
    page.page.keyboard.press("Enter")
    expect(page.connection).to_contain_text("Connected")
    models.get_by_role("button", name="Unload").click()
    page.page.get_by_role("dialog").get_by_role("button", name="Unload").click()
    expect(models.get_by_role("button", name="Load colours")).to_be_visible()
    expect(models.get_by_role("button", name="Unload")).to_have_count(0)
    models.get_by_role("button", name="Load colours").click()
    expect(models.get_by_role("button", name="Unload")).to_be_visible()
    page.drop(GREEN)
    expect(page.answer).to_contain_text("green")


def test_over_tls_the_page_does_all_that_it_does_without(
    colours_package: Path, tmp_path: Path, start_server: StartServer, open_page: OpenPage
) -> None:
    authority = Authority(tmp_path / "tls")
    server = start_server(colours_package, *authority.issue().flags, "--workers", 2)
    # Chromium trusts the machine's own authorities, to which a test adds none.
    page = open_page(server, scheme="https", ignore_https_errors=True).ready()
    page.drop(RED)
    expect(page.answer).to_contain_text("red")
    page.open_table()
    expect(page.own_batches).to_have_count(1)
    page.load_briefly(100)
