"""Names that others chose are text."""

from pathlib import Path

from playwright.sync_api import expect

from tests.browser.conftest import OpenPage, StartServer
from tests.fakes.colours import encoded, plain, write_colours_package

EVIL = '<img src=x onerror="window.hacked=1">'


def test_labels_and_file_names_are_shown_as_text(
    tmp_path: Path, start_server: StartServer, open_page: OpenPage
) -> None:
    labels = (EVIL, "<script>window.hacked=1</script>", "</style>blue", "dark&lt;")
    server = start_server(write_colours_package(tmp_path / "colours", labels=labels))
    page = open_page(server).ready()
    name = f"{EVIL}.png"
    page.drop((name, encoded(plain("red"))))
    expect(page.answer).to_contain_text(EVIL)
    expect(page.section("Try").get_by_text(name).first).to_be_visible()
    for label in labels[1:]:
        expect(page.answer).to_contain_text(label)
    assert page.page.evaluate("window.hacked") is None
    assert page.page.locator("img[src=x]").count() == 0
