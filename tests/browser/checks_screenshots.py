"""Pictures of each part, left in build/browser to be looked at."""

from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import expect

from tests.browser.checks_accessibility import VIEWS, named
from tests.browser.conftest import PICTURES, OpenPage
from tests.serve.processes import ServerProcess


@pytest.mark.parametrize("view", VIEWS, ids=named)
def test_each_part_is_pictured(
    resnet20: ServerProcess, cifar_pictures: list[Path], open_page: OpenPage, view: dict[str, Any]
) -> None:
    PICTURES.mkdir(parents=True, exist_ok=True)
    page = open_page(resnet20, height=4200, **view).ready()
    name = named(view)

    def picture(part: str) -> None:
        page.page.locator(f"#{part}").screenshot(path=PICTURES / f"{part}-{name}.png")

    page.load(rate=500, wait=False)
    page.drop(*cifar_pictures[:4])
    expect(page.answers).to_have_count(4)
    expect(page.activity).to_contain_text("batches/s")
    page.section("Try").get_by_role("button", name="Try reference image").first.click()
    expect(page.answer.get_by_role("table", name="Where the time of this request went")).to_be_visible()
    picture("try")
    picture("batches")
    page.load_ended()
    picture("latency")
    page.section("Models").get_by_role("button", name="Show the export's report").click()
    frame = page.section("Models").locator("iframe").content_frame.locator("iframe").content_frame
    expect(frame.get_by_role("heading").first).to_be_visible()
    picture("models")
    page.page.screenshot(path=PICTURES / f"page-{name}.png", full_page=True)
