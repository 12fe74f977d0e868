"""What the page is made of."""

import re
from pathlib import Path

import fuseline.serve.console
from tests.browser.conftest import OpenPage
from tests.serve.processes import ServerProcess

PAGE = Path(fuseline.serve.console.__file__).parent / "page"
MOST_BYTES = 150_000
ELSEWHERE = re.compile(r"(?:https?:)?//[a-z0-9.-]+", re.IGNORECASE)


def test_all_files_together_are_small() -> None:
    sizes = {path.name: path.stat().st_size for path in PAGE.iterdir()}
    assert "index.html" in sizes
    assert sum(sizes.values()) < MOST_BYTES, sizes


def test_the_markup_names_no_other_origin_and_has_no_script_or_style_of_its_own() -> None:
    markup = (PAGE / "index.html").read_text()
    assert ELSEWHERE.findall(markup) == []
    assert re.findall(r"<script(?![^>]*\ssrc=)|<style|\sstyle=|\son[a-z]+=", markup) == []


def test_no_script_reads_markup() -> None:
    for path in PAGE.glob("*.js"):
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(", path.read_text()), path


def test_a_policy_comes_with_the_page_and_nothing_is_against_it(colours: ServerProcess, open_page: OpenPage) -> None:
    page = open_page(colours)
    response = page.page.reload()
    assert response is not None
    policy = response.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "script-src 'self'" in policy
    assert "unsafe" not in policy
    page.page.evaluate("fetch('http://127.0.0.1:9/').catch(() => null)")
    page.until_fault("against the policy: connect-src")
    page.faults.clear()
