import re
from html.parser import HTMLParser

import pytest
import torch
from torch import nn

from fuseline.export.inspection.inspected import Inspection
from fuseline.export.inspection.inspection_page import inspection_page
from tests.export.inspection.inspections import UNTOLD, look
from tests.export.resnets import tiny_network, trained_like

HOSTILE = "\"'><script>alert(1)</script><img src=x onerror=alert(2)>&{{ 7*7 }}"


class Tags(HTMLParser):
    """Every start tag with its attributes, and whether all that was opened was closed."""

    VOID = ("meta", "img", "line", "rect", "br")

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def found() -> Inspection:
    return look(trained_like(tiny_network()), evidence=("the stem is 3x3",), assumptions=(UNTOLD,))


def test_the_page_needs_nothing_beside_it(found: Inspection) -> None:
    page = inspection_page(found)
    parsed = Tags(page)
    assert parsed.open == []
    assert {tag for tag, _ in parsed.tags} <= {
        *("html", "head", "meta", "title", "style", "body", "h1", "h2", "p", "div", "span", "b", "i", "ul", "li"),
        *("table", "tr", "th", "td", "code", "img", "svg", "rect", "line", "text", "g", "details", "summary", "sup"),
    }
    for _, attributes in parsed.tags:
        for name in ("src", "href", "xlink:href", "data", "action"):
            assert (attributes.get(name) or "data:image/png;base64,").startswith("data:image/png;base64,")
    assert "url(" not in page
    assert "@import" not in page
    assert "prefers-color-scheme: dark" in page


def test_the_page_holds_every_section(found: Inspection) -> None:
    page = inspection_page(found)
    for text in (
        *("The stem is 3x3.", "Assumed stride=conv1", "8.87 M", "the picture: 32", "data:image/png"),
        *("BatchNorm gains", "on generated images only", "nothing at risk", "layer4.0.shortcut.0"),
    ):
        assert text in page, text
    assert page.count("<rect") == len(found.layers) + len(found.batchnorms)


def test_hostile_names_are_text(found: Inspection) -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(3600, 10))
    names = {name: HOSTILE + name for name, _ in module.named_modules()}
    page = inspection_page(
        look(
            module,
            names=names,
            architecture=HOSTILE,
            evidence=(HOSTILE,),
            assumptions=(UNTOLD.model_copy(update={"meaning": HOSTILE}),),
        )
    )
    tags = Tags(page)
    assert tags.open == []
    assert not [tag for tag, _ in tags.tags if tag == "script"]
    assert [attributes["src"][:5] for tag, attributes in tags.tags if tag == "img"] == ["data:"]
    assert not [name for _, attributes in tags.tags for name in attributes if name.startswith("on")]
    assert "{{ 7*7 }}" in page


def test_the_receptive_field_is_drawn_to_scale(found: Inspection) -> None:
    page = inspection_page(found)
    svg = page[page.index('aria-label="Receptive field') : page.index("</svg>")]
    ticks = {label: float(y) for y, label in re.findall(r'<text x="[\d.]+" y="([\d.]+)" text-anchor="end">(\d+)<', svg)}
    scale = (ticks["0"] - ticks["100"]) / 100
    heights = [float(height) for height in re.findall(r'<rect class="bar[^>]* height="([\d.]+)"', svg)]
    sizes = [(layer.receptive_field_pixels or (0, 0))[0] for layer in found.layers]
    assert heights == pytest.approx([size * scale for size in sizes], abs=0.2)


def test_dead_channels_and_no_batchnorm_at_all_can_be_drawn() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(3600, 10))
    nn.init.zeros_(module[1].weight)
    assert "range dead" in inspection_page(look(module))
    assert "BatchNorm gains" not in inspection_page(look(nn.Sequential(nn.Flatten(), nn.Linear(3072, 10))))


def test_risks_are_shown() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(3600, 10))
    module[0].weight.data = torch.full((4, 3, 3, 3), 1e5)
    page = inspection_page(look(module))
    assert "is beyond FP16" in page
    assert "at risk</span>" in page
    assert "nothing at risk" not in page
