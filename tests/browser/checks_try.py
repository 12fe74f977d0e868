"""Pictures that are given to the page, and what it answers."""

import subprocess
import sys
from pathlib import Path

import pytest
from playwright.sync_api import expect

from tests.browser.conftest import OpenPage, classified
from tests.browser.watched_page import WatchedPage
from tests.fakes.colours import encoded, plain
from tests.serve.processes import ROOT, ServerProcess

PARTS = ["read", "decode", "wait", "batch", "compute", "answer", "network"]


@pytest.fixture
def page(resnet20: ServerProcess, open_page: OpenPage) -> WatchedPage:
    """The page of the trained model."""
    return open_page(resnet20).ready()


@pytest.mark.parametrize("how", ["drop", "drop_from_desktop", "choose", "paste"])
def test_a_picture_gets_the_answer_of_the_command(
    page: WatchedPage, resnet20: ServerProcess, cifar_pictures: list[Path], how: str
) -> None:
    pictures = cifar_pictures[3:5]
    shown = []
    for picture in pictures:
        getattr(page, how)(picture)
        expect(page.answers).to_have_count(len(shown) + 1)
        expect(page.answer.get_by_role("heading", name=picture.name)).to_be_visible()
        shown.append(page.top()["Class"])
    assert shown == classified(resnet20, *pictures)


@pytest.mark.parametrize("how", ["drop", "choose"])
def test_several_pictures_at_once_each_get_the_answer_of_the_command(
    page: WatchedPage, resnet20: ServerProcess, cifar_pictures: list[Path], how: str, tmp_path: Path
) -> None:
    # Each class has a file of that name.
    pictures = [tmp_path / f"{each.parent.name}.jpg" for each in cifar_pictures]
    for copy, picture in zip(pictures, cifar_pictures, strict=True):
        copy.write_bytes(picture.read_bytes())
    getattr(page, how)(*pictures)
    expect(page.answers).to_have_count(len(pictures))
    shown = dict(map(_name_and_label, page.answers.all()))
    assert shown == dict(zip((each.name for each in pictures), classified(resnet20, *pictures), strict=True))


@pytest.mark.parametrize("how", ["drop", "choose"])
def test_a_folder_is_answered_and_what_is_no_picture_in_it_passed_over(
    page: WatchedPage, cifar_pictures: list[Path], how: str, tmp_path: Path
) -> None:
    below = tmp_path / "photos" / "more"
    below.mkdir(parents=True)
    for n, picture in enumerate(cifar_pictures):
        (below if n % 2 else below.parent).joinpath(f"{n}.jpg").write_bytes(picture.read_bytes())
    (below / "notes.txt").write_text("no picture")
    if how == "drop":
        page.drop_from_desktop(below.parent)
    else:
        page.section("Try").locator("input[webkitdirectory]").set_input_files(below.parent)
    expect(page.answers).to_have_count(10)
    expect(page.section("Try").get_by_text("10 of 10 pictures, 1 other file passed over")).to_be_visible()
    names = [name for name, _ in map(_name_and_label, page.answers.all())]
    assert sorted(names) == sorted(f"photos/{'more/' if n % 2 else ''}{n}.jpg" for n in range(10))


_HOLD_FACTS = """
window.heldFacts = new Promise((resolve) => (window.letFactsGo = resolve));
const realFetch = window.fetch;
window.fetch = async (resource, options) => {
  if (String(resource).endsWith("/console/server")) await window.heldFacts;
  return realFetch(resource, options);
};
"""


def test_a_picture_that_comes_before_the_models_are_known_is_answered_once_they_are(
    colours: ServerProcess, open_page: OpenPage
) -> None:
    page = open_page(colours, script=_HOLD_FACTS)
    expect(page.connection).to_have_text("Connected")
    page.drop(("red.png", encoded(plain("red"))))
    expect(page.section("Try").get_by_text("Waiting for the server")).to_be_visible()
    page.page.evaluate("window.letFactsGo()")
    expect(page.answers).to_have_count(1)
    assert page.top()["Class"] == "red"


def test_a_reference_image_has_pytorchs_answer_beside_the_served_one(page: WatchedPage) -> None:
    buttons = page.section("Try").get_by_role("button", name="Try reference image")
    page.section("Try").get_by_role("heading", name="Reference images").scroll_into_view_if_needed()
    expect(buttons).to_have_count(8)
    for n in (0, 5):
        buttons.nth(n).click()
        expect(page.answer.get_by_role("heading", name=f"reference image {n}")).to_be_visible()
        expect(page.answer).to_contain_text("✓ PyTorch's answer")
        top = page.top()
        said = str(buttons.nth(n).get_attribute("aria-label"))
        assert said.rpartition("PyTorch says ")[2].startswith(f"{top['Class']}, ")
        served, of_torch = (float(top[column].removesuffix(" %")) for column in ("Served", "PyTorch"))
        assert abs(served - of_torch) < 0.02


def test_a_request_has_all_parts_of_its_time_and_its_batch_is_lit_up(
    page: WatchedPage, cifar_pictures: list[Path]
) -> None:
    page.drop(cifar_pictures[0])
    table = page.answer.get_by_role("table", name="Where the time of this request went")
    expect(table.get_by_role("row")).to_have_count(len(PARTS))
    assert [text.split()[0] for text in table.get_by_role("rowheader").all_inner_texts()] == PARTS
    times = [float(text.split()[0]) for text in table.locator("td.number").all_inner_texts()]
    assert all(each >= 0 for each in times)
    assert times[PARTS.index("compute")] > 0
    whole = page.answer.get_by_role("heading", name="from sending to answer").inner_text()
    # Each part is rounded to 0.01 ms or coarser.
    assert sum(times) == pytest.approx(float(whole.split()[0]), abs=0.5)
    page.open_table()
    expect(page.own_batches).to_have_count(1)


def test_a_file_that_is_no_picture_is_refused_in_the_servers_words_and_the_page_goes_on(
    page: WatchedPage, resnet20: ServerProcess, cifar_pictures: list[Path], tmp_path: Path
) -> None:
    page.expect_failed_calls("400")
    page.drop(("cat.jpg", b"this is no picture"))
    expect(page.answer).to_contain_text("cat.jpg")
    no_picture = tmp_path / "cat.jpg"
    no_picture.write_bytes(b"this is no picture")
    command = [sys.executable, "-m", "fuseline", "classify", str(no_picture), "--address", resnet20.address]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    told = page.answer.locator(".bad").inner_text()
    assert told
    assert told.split(": ", 1)[-1] in " ".join(done.stderr.split())
    page.drop(cifar_pictures[8])
    expect(page.answer.get_by_role("heading", name=cifar_pictures[8].name)).to_be_visible()
    assert [page.top()["Class"]] == classified(resnet20, cifar_pictures[8])


def _name_and_label(button) -> tuple[str, str]:
    return button.locator(".name").inner_text(), button.locator(".label").inner_text()
