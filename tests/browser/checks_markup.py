"""Names that others chose are text."""

from pathlib import Path

from playwright.sync_api import expect

from tests.browser.conftest import OpenPage, StartServer
from tests.fakes.colours import encoded, plain, write_colours_package

EVIL = '<img src=x onerror="window.hacked=1">'


def test_a_report_is_shown_in_place_and_its_scripts_do_not_run(
    tmp_path: Path, start_server: StartServer, open_page: OpenPage
) -> None:
    package = write_colours_package(tmp_path / "colours")
    script = "<script>top.hacked = 1; parent.hacked = 1</script><img src=x onerror='top.hacked = 1'>"
    (package / "report.html").write_text(f"<!doctype html><title>x</title><h1>What was proven</h1>{script}")
    page = open_page(start_server(package)).ready()
    page.expect("Blocked script execution in 'about:srcdoc'")
    page.expect("Loading the image 'http.*/x' violates")
    models = page.section("Models")
    models.get_by_role("button", name="Show the export's report").click()
    frame = models.locator("iframe").content_frame.locator("iframe").content_frame
    expect(frame.get_by_role("heading", name="What was proven")).to_be_visible()
    assert page.page.evaluate("window.hacked") is None
    models.get_by_role("button", name="Hide the report").click()
    expect(models.locator("iframe")).to_have_count(0)


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
