"""The Grafana dashboard: its JSON by Grafana's schema, its queries by the metrics of a real server."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from grafana_foundation_sdk.cog import plugins
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import Dashboard
from prometheus_client.parser import text_string_to_metric_families

from fuseline.serve.client import Client
from tests.fakes.colours import encoded, plain, write_colours_package
from tests.serve.processes import FAST, ROOT, free_port, get, server_process

DASHBOARD = ROOT / "deploy" / "grafana" / "fuseline.json"
_SUFFIXES = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count"), "gauge": ("",)}
_STRING = re.compile(r'"(?:[^"\\]|\\.)*"')
_GROUPING = re.compile(r"\b(?:(?:by|without|on|ignoring)\s*\([^)]*\)|group_left|group_right)")
_MATCHERS = re.compile(r"\{[^}]*\}")
_RANGE = re.compile(r"\[[^\]]*\]")
_NAME = re.compile(r"[A-Za-z_:][A-Za-z0-9_:]*")
_WORDS = frozenset(
    ("sum", "max", "rate", "increase", "histogram_quantile", "label_values", "group_left", "job", "model")
)
"""Functions of the queries, and the labels whose values the variables list."""


def panels(dashboard: dict[str, Any]) -> list[dict[str, Any]]:
    found = dashboard["panels"]
    return [*found, *(inner for panel in found for inner in panel.get("panels", ()))]


def queries() -> list[str]:
    dashboard = json.loads(DASHBOARD.read_text())
    of_panels = [target["expr"] for panel in panels(dashboard) for target in panel.get("targets", ())]
    variables = dashboard["templating"]["list"]
    return of_panels + [its["query"]["query"] for its in variables if its["type"] == "query"]


def metric_names(expression: str) -> set[str]:
    """The names of the metrics in an expression of PromQL: what is no string, label, range, number or word of it."""
    for pattern in (_STRING, _MATCHERS, _RANGE, _GROUPING):
        expression = pattern.sub(" ", expression)
    return {name for name in _NAME.findall(expression) if name not in _WORDS}


def shown_names(text: str) -> set[str]:
    """The names that a server shows by its text, with or without a sample so far."""
    return {
        family.name + suffix
        for family in text_string_to_metric_families(text)
        for suffix in _SUFFIXES.get(family.type, ("",))
    }


def test_names_are_read_from_expressions() -> None:
    expression = 'histogram_quantile(0.5, sum by (le, x_y) (rate(a_b_bucket{c_d=~"$e",f="g_h"}[5m]))) / i_j'
    assert metric_names(expression) == {"a_b_bucket", "i_j"}


def test_grafana_s_own_types_read_the_dashboard_without_a_loss() -> None:
    plugins.register_default_plugins()
    dashboard = json.loads(DASHBOARD.read_text())
    read = json.loads(JSONEncoder(sort_keys=True).encode(Dashboard.from_json(dashboard)))

    def lost(ours: Any, theirs: Any, path: str) -> list[str]:
        if isinstance(ours, dict):
            return [
                place
                for key, value in ours.items()
                for place in (lost(value, theirs[key], f"{path}/{key}") if key in theirs else [f"{path}/{key}"])
            ]
        if isinstance(ours, list) and len(ours) == len(theirs):
            return [
                place for n, (a, b) in enumerate(zip(ours, theirs, strict=True)) for place in lost(a, b, f"{path}/{n}")
            ]
        return [] if ours == theirs else [path]

    assert lost(dashboard, read, "") == []


def test_panels_have_ids_places_and_descriptions_of_their_own() -> None:
    dashboard = json.loads(DASHBOARD.read_text())
    found = panels(dashboard)
    assert len({panel["id"] for panel in found}) == len(found)
    cells: set[tuple[int, int]] = set()
    for panel in found:
        place = panel["gridPos"]
        own = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert max(x for x, _ in own) < 24
        assert not own & cells, panel["title"]
        cells |= own
        assert panel["type"] == "row" or panel["description"]


@pytest.mark.parametrize(
    "flags",
    [(), pytest.param(("--workers", 2), marks=pytest.mark.slow)],
    ids=["one process", "workers"],
)
def test_every_metric_that_it_asks_for_is_on_a_real_server_and_in_the_docs(
    tmp_path: Path, flags: tuple[object, ...]
) -> None:
    package = write_colours_package(tmp_path / "colours")
    asked = set().union(*map(metric_names, queries()))
    assert len(asked) > 15
    with server_process(package, *FAST, *flags, "--http-port", free_port(), "--backend", "onnxruntime") as server:
        assert server.http_address is not None
        with Client(server.address) as client:
            client.classify([encoded(plain("red"))])
        _, text = get(server.http_address, "/metrics")
    shown = shown_names(text)
    only_with_workers = set() if flags else {"fuseline_process_restarts_total"}
    assert asked - shown == only_with_workers
    docs = (ROOT / "docs" / "observability.md").read_text()
    ours = {name for name in shown if name.startswith("fuseline_") and not name.endswith("_created")}
    families = {name.removesuffix("_bucket").removesuffix("_sum").removesuffix("_count") for name in ours}
    assert [name for name in sorted(families) if f"`{name}`" not in docs] == []
