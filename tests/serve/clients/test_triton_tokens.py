"""Bearer tokens by the unmodified tritonclient's four clients, which send them as headers."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from fuseline.serve.access.token_file import add_line, new_token, token_line
from tests.fakes.colours import expected_logits, noise, write_colours_package
from tests.serve.clients.conftest import Offer, wrong
from tests.serve.processes import FAST, free_port, server_process

PIXELS = noise(3)


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """What the script saw of a server that asks for tokens, with one that may infer."""
    folder = tmp_path_factory.mktemp("tokens")
    (folder / "files").mkdir()
    np.save(folder / "pixels.npy", PIXELS)
    token = new_token()
    (folder / "token").write_text(token)
    add_line(folder / "hashes", token_line(token, name="shop", role="infer"))
    package = write_colours_package(folder / "colours")
    flags = (*FAST, "--http-port", free_port(), "--token-hashes", folder / "hashes")
    with server_process(package, *flags) as server:
        offer = Offer(server, folder, expected_logits(PIXELS), np.empty(0, np.float32))
        yield offer.seen_by(".venv-tritonclient", "triton_token_calls.py")


def test_calls_with_the_token_are_answered(seen: dict[str, Any]) -> None:
    assert len(seen["with"]) == 5
    assert wrong(seen["with"], expected_logits(PIXELS)) == {}


def test_calls_without_it_are_refused(seen: dict[str, Any]) -> None:
    assert seen["without"]["grpc"]["status"] == "StatusCode.UNAUTHENTICATED"
    assert seen["without"]["http"]["status"] == "401"
    assert "this call needs a token" in seen["without"]["http"]["message"]
    assert "StatusCode.UNAUTHENTICATED" in seen["without"]["stream"]


def test_calls_beyond_its_role_are_refused(seen: dict[str, Any]) -> None:
    for door, status in (("grpc", "StatusCode.PERMISSION_DENIED"), ("http", "403")):
        for kind in (door, f"{door} memory"):
            assert seen["beyond the role"][kind]["status"] == status, kind


def test_probes_need_none(seen: dict[str, Any]) -> None:
    assert seen["live"] == [True, True, True, True]
