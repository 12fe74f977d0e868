"""What is copied from the page runs as it is and gives the answer that the page shows."""

import os
import subprocess
from pathlib import Path

import pytest
from playwright.sync_api import expect

from tests.browser.conftest import OpenPage, StartServer
from tests.browser.watched_page import WatchedPage
from tests.fakes.colours import encoded, plain
from tests.serve.access.token_files import TokenFile, written_token_file
from tests.serve.processes import ROOT, ServerProcess

KINDS = {"curl": "curl ", "Python": "from fuseline", "tritonclient": "import InferenceServerClient"}
"""Each kind, and what its text has."""
CLIPBOARD = ["clipboard-read", "clipboard-write"]


def copied(page: WatchedPage, kind: str) -> str:
    """Copy the text of that kind; return what the clipboard has."""
    page.page.context.grant_permissions(CLIPBOARD)
    page.answer.get_by_role("tab", name=kind, exact=True).click()
    expect(page.answer.get_by_role("tabpanel")).to_contain_text(KINDS[kind])
    page.answer.get_by_role("button", name="Copy", exact=True).click()
    expect(page.answer.get_by_role("status")).to_have_text("Copied")
    text: str = page.page.evaluate("navigator.clipboard.readText()")
    return text


def told(kind: str, text: str, folder: Path, token: str = "") -> str:
    """What the text prints, run in `folder`, with a user's token in the environment."""
    environment = ROOT / (".venv-tritonclient" if kind == "tritonclient" else ".venv")
    if not environment.is_dir():
        pytest.skip(f"there is no {environment.name}; `make setup` makes it")
    command = ["bash", "-c", text] if kind == "curl" else [environment / "bin" / "python", "-c", text]
    done = subprocess.run(
        command,
        cwd=folder,
        env=os.environ | {"FUSELINE_TOKEN": token} | ({"PYTHONPATH": str(ROOT)} if kind == "Python" else {}),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, f"{text}\n{done.stdout}{done.stderr}"
    return done.stdout


@pytest.mark.parametrize("kind", KINDS)
def test_a_jpeg_gets_the_same_answer(
    resnet20: ServerProcess, open_page: OpenPage, cifar_pictures: list[Path], kind: str
) -> None:
    page = open_page(resnet20).ready()
    picture = cifar_pictures[6]
    page.drop(picture)
    expect(page.answer.get_by_role("heading", name=picture.name)).to_be_visible()
    assert page.top()["Class"] in told(kind, copied(page, kind), picture.parent)


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> TokenFile:
    return written_token_file(tmp_path_factory.mktemp("tokens"))


@pytest.fixture(scope="module")
def guarded(colours_package: Path, tokens: TokenFile, start_session_server: StartServer) -> ServerProcess:
    """A server that asks for a token."""
    return start_session_server(colours_package, "--token-hashes", tokens.path)


@pytest.fixture
def guarded_page(guarded: ServerProcess, tokens: TokenFile, open_page: OpenPage) -> WatchedPage:
    page = open_page(guarded)
    page.expect_failed_calls("401")
    page.page.get_by_label("Token of this server").fill(tokens.infer)
    page.page.keyboard.press("Enter")
    return page.ready()


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_of_an_odd_name_gets_the_same_answer_with_a_token_that_the_text_does_not_have(
    guarded_page: WatchedPage, tokens: TokenFile, kind: str, tmp_path: Path
) -> None:
    name = '-it\'s "red" $HOME `id` \\n.png'
    (tmp_path / name).write_bytes(encoded(plain("red")))
    guarded_page.drop(tmp_path / name)
    expect(guarded_page.answer.get_by_role("heading", name=name)).to_be_visible()
    text = copied(guarded_page, kind)
    assert tokens.infer not in text
    assert "red" in told(kind, text, tmp_path, tokens.infer).replace(name, "")


@pytest.mark.parametrize("kind", KINDS)
def test_a_reference_image_gets_the_same_answer(
    guarded_page: WatchedPage, tokens: TokenFile, kind: str, tmp_path: Path
) -> None:
    guarded_page.section("Try").get_by_role("button", name="Try reference image 2").click()
    expect(guarded_page.answer).to_contain_text("✓ PyTorch's answer")
    label = guarded_page.top()["Class"]
    assert label in told(kind, copied(guarded_page, kind), tmp_path, tokens.infer)
