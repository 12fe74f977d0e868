"""The last minute: times, rates and refusals, and the load that makes them."""

import re
from pathlib import Path

import grpc
import pytest
from playwright.sync_api import Locator, expect

from fuseline.protos.classify_pb2 import ClassifyRequest, Image
from fuseline.protos.classify_pb2_grpc import ClassifierStub
from tests.browser.conftest import OpenPage, StartServer
from tests.browser.watched_page import WatchedPage
from tests.fakes.colours import noise
from tests.serve.processes import ServerProcess

PIXELS = noise(1)[0].tobytes()


def rows_of(page: WatchedPage, caption: str) -> Locator:
    return page.section("Latency").get_by_role("table", name=re.compile(caption)).locator("tbody tr")


def classify(server: ServerProcess, times: int = 1, timeout_s: float = 10, **changes: object) -> list[grpc.StatusCode]:
    """The codes of that many calls over gRPC."""
    codes = []
    with grpc.insecure_channel(server.address) as channel:
        for _ in range(times):
            request = ClassifyRequest(**({"images": [Image(raw=PIXELS)]} | changes))  # type: ignore[arg-type]
            try:
                ClassifierStub(channel).Classify(request, timeout=timeout_s)
                codes.append(grpc.StatusCode.OK)
            except grpc.RpcError as error:
                codes.append(error.code())
    return codes


@pytest.fixture
def page(colours: ServerProcess, open_page: OpenPage) -> WatchedPage:
    return open_page(colours, height=3000).ready()


def test_answers_are_counted_by_their_method_and_shown_by_their_times(
    page: WatchedPage, colours: ServerProcess
) -> None:
    assert classify(colours, times=20) == [grpc.StatusCode.OK] * 20
    rates = rows_of(page, "Requests a second")
    expect(rates.filter(has_text=re.compile(r"^ClassifyOK\d"))).to_have_count(1)
    figures = page.section("Latency").locator("dl.figures")
    expect(figures).to_contain_text(re.compile(r"p50[\d.]+ ms"))
    expect(figures).to_contain_text(re.compile(r"p99[\d.]+ ms"))
    expect(page.section("Latency").get_by_role("img")).to_have_attribute(
        "aria-label", re.compile(r"^Times to \d+ answers")
    )


def test_refusals_come_with_their_reasons_those_of_models_that_are_not_served_too(
    page: WatchedPage, colours: ServerProcess
) -> None:
    assert classify(colours, model="cats") == [grpc.StatusCode.NOT_FOUND]
    assert classify(colours, images=[Image(raw=b"short")]) == [grpc.StatusCode.INVALID_ARGUMENT]
    refused = rows_of(page, "Refused")
    expect(refused.filter(has_text="NOT_FOUND")).to_contain_text("UnknownModelError")
    expect(refused.filter(has_text="INVALID_ARGUMENT")).to_contain_text("RequestError")
    # What a client sent is no one else's business.
    expect(page.section("Latency")).not_to_contain_text("cats")


def test_an_overload_is_refused_in_the_servers_own_words(
    colours_package: Path, start_server: StartServer, open_page: OpenPage
) -> None:
    page = open_page(start_server(colours_package, "--max-requests-per-client", 1), height=3000).ready()
    page.load(rate=1000, wait=False)
    refused = rows_of(page, "Refused").filter(has_text="RESOURCE_EXHAUSTED")
    expect(refused).to_contain_text("OverloadedError")
    expect(refused).to_contain_text("1 requests of this client are under way")
    assert "refused: " in page.load_ended()


def test_the_latency_target_is_a_line_and_goodput_is_what_keeps_it(
    colours_package: Path, start_server: StartServer, open_page: OpenPage
) -> None:
    server = start_server(colours_package, "--latency-target", "250ms")
    page = open_page(server, height=3000).ready()
    page.load(rate=50)
    section = page.section("Latency")
    expect(section).to_contain_text("within the target")
    expect(section.get_by_role("img")).to_have_attribute("aria-label", re.compile("target 250 ms"))


def test_a_load_says_what_became_of_it(page: WatchedPage) -> None:
    page.load(rate=100)
    outcome = page.section("Latency").locator("p[role=status]")
    expect(outcome).to_have_text(
        re.compile(r"^[\d\u202f]+ sent, [\d\u202f]+ answered, none wrong, p50 [\d.]+ ms, p99 [\d.]+ ms$")
    )
