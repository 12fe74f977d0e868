"""The page for who doesn't see it, sees it in the dark or has a small screen."""

from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import expect

from tests.browser.conftest import OpenPage, StartServer
from tests.browser.watched_page import WatchedPage
from tests.fakes.colours import write_colours_package
from tests.serve.access.token_files import written_token_file
from tests.serve.processes import ServerProcess

VIEWS: list[dict[str, Any]] = [
    {"color_scheme": "light"},
    {"color_scheme": "dark"},
    {"color_scheme": "light", "width": 400},
    {"color_scheme": "dark", "width": 400},
]


def named(view: dict[str, Any]) -> str:
    return "-".join(map(str, view.values()))


def faults_of(page: WatchedPage) -> list[str]:
    """What axe-core finds serious or critical."""
    found = Axe().run(page.page).response["violations"]
    return [
        f"{each['impact']}: {each['help']} ({each['id']}) at {', '.join(str(node['target']) for node in each['nodes'])}"
        for each in found
        if each["impact"] in {"serious", "critical"}
    ]


def check_width(page: WatchedPage) -> None:
    """Fail if the page scrolls sideways."""
    page_width, screen_width = page.page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
    assert page_width <= screen_width, page.page.evaluate(
        "[...document.querySelectorAll('body *')].filter(each => each.getBoundingClientRect().right > innerWidth)"
        ".map(each => each.tagName + '.' + each.className)"
    )


@pytest.mark.parametrize("view", VIEWS, ids=named)
def test_axe_finds_nothing_serious(
    resnet20: ServerProcess, cifar_pictures: list[Path], open_page: OpenPage, view: dict[str, Any]
) -> None:
    page = open_page(resnet20, height=3500, **view).ready()
    reference = page.section("Try").get_by_role("button", name="Try reference image")
    expect(reference).to_have_count(8)
    assert faults_of(page) == []
    page.drop(*cifar_pictures[:3])
    expect(page.answers).to_have_count(3)
    reference.first.click()
    expect(page.answer.get_by_role("table", name="Where the time of this request went")).to_be_visible()
    page.open_table()
    expect(page.batch_table.get_by_role("row").first).to_be_visible()
    page.load_briefly(rate=20)
    assert faults_of(page) == []


@pytest.mark.parametrize("view", VIEWS[1:3], ids=named)
def test_axe_finds_nothing_serious_in_the_form_for_a_token(
    colours_package: Path, tmp_path: Path, start_server: StartServer, open_page: OpenPage, view: dict[str, Any]
) -> None:
    server = start_server(colours_package, "--token-hashes", written_token_file(tmp_path).path)
    page = open_page(server, **view)
    page.expect_failed_calls("401")
    form = page.page.get_by_label("Token of this server")
    expect(form).to_be_visible()
    assert faults_of(page) == []
    form.fill("fl_wrong")
    page.page.keyboard.press("Enter")
    expect(page.connection).to_have_text("The server refuses this token")
    assert faults_of(page) == []


def test_ten_models_have_room_on_a_small_screen(tmp_path: Path, start_server: StartServer, open_page: OpenPage) -> None:
    packages = [write_colours_package(tmp_path / f"m{n}", name=f"a-model-of-many-words-{n}" * 3) for n in range(10)]
    page = open_page(start_server(*packages), width=400, height=3500).ready()
    expect(page.section("Models").get_by_role("heading", level=3)).to_have_count(10)
    expect(page.page.get_by_role("combobox", name="Model").get_by_role("option")).to_have_count(10)
    check_width(page)
    assert faults_of(page) == []


def test_nothing_scrolls_sideways_on_a_small_screen(
    resnet20: ServerProcess, cifar_pictures: list[Path], open_page: OpenPage
) -> None:
    page = open_page(resnet20, width=400, height=3500).ready()
    page.drop(("a-long-name-" * 20 + ".jpg", cifar_pictures[0].read_bytes()), cifar_pictures[1])
    expect(page.answers).to_have_count(2)
    page.open_table()
    page.load_briefly(rate=20)
    check_width(page)
