"""The strip of batches: what it shows under load, what it holds still, how it is walked."""

import re
from pathlib import Path

import pytest
from playwright.sync_api import expect

from tests.browser.conftest import OpenPage, StartServer
from tests.browser.watched_page import WatchedPage
from tests.fakes.colours import encoded, plain
from tests.serve.processes import ServerProcess

RED = ("red.png", encoded(plain("red")))


@pytest.fixture
def page(colours: ServerProcess, open_page: OpenPage) -> WatchedPage:
    """A page high enough that all parts are in sight."""
    return open_page(colours, height=3000).ready()


def test_a_request_s_batch_is_lit_up_among_others(page: WatchedPage) -> None:
    page.open_table()
    page.load(rate=50)
    page.drop(RED)
    expect(page.own_batches).to_have_count(1)
    number = page.own_batches.locator("th, td").first.inner_text()
    expect(page.readout).to_contain_text(number)
    # The next one of this page takes its place.
    page.drop(RED)
    expect(page.answers).to_have_count(2)
    expect(page.own_batches.locator("th, td").first).not_to_have_text(number)
    expect(page.own_batches).to_have_count(1)


def test_the_strip_grows_under_load_and_pause_holds_it(page: WatchedPage) -> None:
    page.drop(RED)
    expect(page.batches_summary).to_have_text(re.compile(r"The last \d+ batch"))
    before = page.batches_counted
    page.open_table()
    page.load(rate=100, wait=False)
    expect(page.activity).to_have_text(re.compile(r"^\d+ batches/s"))
    page.section("Batches").get_by_role("button", name="Pause").click()
    held = page.batch_table.inner_text()
    expect(page.activity).to_have_text(re.compile(r"paused\W+(?!0 newer).*newer", re.IGNORECASE))
    assert page.batch_table.inner_text() == held
    page.section("Batches").get_by_role("button", name="Resume").click()
    expect(page.batch_table).not_to_have_text(held)
    page.load_ended()
    # It is renewed every few seconds.
    page.until_more_batches(before + 20)
    reasons = re.findall(r"\d+ (\w+)", page.batches_summary.inner_text().partition(": ")[2].partition(".")[0])
    assert set(reasons) <= {"full", "idle", "next", "deadline", "delay", "drain"}
    assert reasons


def test_the_keyboard_alone_chooses_a_reference_image_walks_the_strip_and_pauses(page: WatchedPage) -> None:
    reference = page.section("Try").get_by_role("button", name="Try reference image")
    expect(reference).to_have_count(4)
    page.tab_to(reference.nth(1))
    page.page.keyboard.press("Enter")
    expect(page.answer).to_contain_text("✓ PyTorch's answer")
    for _ in range(2):
        page.page.keyboard.press("Enter")
    expect(page.answers).to_have_count(3)
    strip = page.section("Batches").get_by_role("application")
    expect(strip).to_be_visible()
    page.tab_to(strip)
    page.page.keyboard.press("End")
    spoken = page.section("Batches").locator("[aria-live=polite]")
    expect(spoken).to_contain_text("Batch")
    expect(page.section("Batches").get_by_role("button", name="Resume")).to_have_attribute("aria-pressed", "true")
    last = spoken.inner_text()
    page.page.keyboard.press("ArrowLeft")
    expect(spoken).not_to_have_text(last)
    page.page.keyboard.press("ArrowRight")
    expect(spoken).to_have_text(last)
    page.page.keyboard.press("Space")
    expect(page.section("Batches").get_by_role("button", name="Pause")).to_have_attribute("aria-pressed", "false")
    page.tab_to(page.section("Batches").get_by_role("button", name="Pause"), back=True)
    page.page.keyboard.press("Enter")
    expect(page.activity).to_contain_text("paused", ignore_case=True)


def test_with_workers_the_page_has_batches_and_requests_of_all(
    colours_package: Path, start_server: StartServer, open_page: OpenPage
) -> None:
    server = start_server(colours_package, "--workers", 2)
    page = open_page(server, height=3000).ready()
    page.open_table()
    page.drop(*(RED for _ in range(20)))
    expect(page.answers).to_have_count(20)
    expect(page.own_batches).to_have_count(1)
    # Connections of a browser are shared out among the workers, and all tell the page.
    expect(page.section("Latency")).to_contain_text("of 20 requests in the last minute")
