import io
import json

import pytest
import timm
from rich.console import Console
from torch import nn

from fuseline.export.inspection.inspected import Inspection
from fuseline.export.inspection.inspection_view import show_inspection
from tests.export.inspection.inspections import UNTOLD, look
from tests.export.resnets import tiny_network, trained_like


def shown(found: Inspection, width: int) -> str:
    stream = io.StringIO()
    show_inspection(found, as_json=False, console=Console(file=stream, width=width, highlight=False))
    return stream.getvalue()


@pytest.fixture(scope="module")
def gated() -> Inspection:
    """Long names, gates, groups and a BatchNorm that folds into nothing."""
    module = trained_like(timm.create_model("seresnext26d_32x4d", num_classes=10))
    prefix = "backbone.encoder.stages."
    names = {name: prefix + name for name, _ in module.named_modules() if name.startswith("layer")}
    return look(module, side=64, names=names, assumptions=(UNTOLD,))


@pytest.mark.parametrize("width", [100, 140, 1000])
def test_no_line_is_wider_and_every_layer_has_one(gated: Inspection, width: int) -> None:
    lines = shown(gated, width).splitlines()
    assert max(map(len, lines)) <= width
    table = lines[lines.index(next(line for line in lines if line.startswith("layer "))) + 2 :]
    rows = table[: len(gated.layers)]
    for row, layer in zip(rows, gated.layers, strict=True):
        assert f" {layer.kind} " in row
        assert row.rstrip().endswith("yes" if layer.covers_input else "no")
        assert layer.name[-14:] in row
        assert row.count("…") == (layer.name not in row), "nothing but a name is shortened"
        assert width < 1000 or layer.name in row


def test_a_pipe_gets_everything(capsys: pytest.CaptureFixture[str]) -> None:
    found = look(trained_like(tiny_network()))
    show_inspection(found, as_json=False)
    out = capsys.readouterr().out
    assert "…" not in out
    for layer in found.layers:
        assert f"{layer.name} " in out
        assert f"{layer.multiply_adds:,}" in out
    for norm in found.batchnorms:
        assert f"{norm.name} " in out
    assert "parameters: " in out
    assert "on generated images only" in out
    assert "nothing at risk in FP16" in out


def test_why_it_was_recognised_and_what_is_not_told(gated: Inspection) -> None:
    assert "not told: assumed stride=conv1: strides are not told by tensors" in shown(gated, 100)


def test_hostile_names_neither_style_nor_command_the_terminal() -> None:
    hostile = "[red]\x1b]0;owned\x07[/nonsense]"
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(3600, 10))
    names = {name: hostile + name for name, _ in module.named_modules()}
    found = look(
        module,
        names=names,
        architecture=hostile,
        evidence=(hostile,),
        assumptions=(UNTOLD.model_copy(update={"meaning": hostile}),),
    )
    for width in (100, 1000):
        out = shown(found, width)
        assert "\x1b" not in out
        assert "\x07" not in out
    assert r"[red]\x1b]0;owned\x07[/nonsense]0" in out


def test_json_has_everything_under_stable_names(capsys: pytest.CaptureFixture[str]) -> None:
    found = look(trained_like(tiny_network()))
    show_inspection(found, as_json=True)
    plain = json.loads(capsys.readouterr().out)
    assert plain.keys() == {
        *("file", "sha256", "architecture", "evidence", "unseen", "notes", "classes", "input_shape"),
        *("parameters", "other_parameters", "multiply_adds", "layers", "batchnorms", "applied_folds"),
        *("fp16", "dead_gain_below"),
    }
    assert plain["layers"][0] == {
        "name": "conv1",
        "kind": "conv",
        "kernel": [3, 3],
        "stride": [1, 1],
        "dilation": [1, 1],
        "groups": 1,
        "output_shape": [8, 32, 32],
        "parameters": 216,
        "multiply_adds": 216 * 1024,
        "receptive_field_pixels": [3, 3],
        "sees_whole_input": False,
        "covers_input": False,
    }
    assert plain["batchnorms"][0].keys() == {
        *("name", "channels", "parameters", "eps", "running_mean", "running_variance", "gamma", "beta", "gain"),
        *("dead_channels", "folds_into", "why_not"),
    }
    assert plain["batchnorms"][0]["gain"].keys() == {"smallest", "median", "largest"}
    assert plain["fp16"]["layers"][0].keys() == {
        *("layer", "largest_weight", "subnormal_share", "zero_share", "largest_activation", "activation_margin"),
        "risks",
    }
    assert plain["multiply_adds"] == sum(layer["multiply_adds"] for layer in plain["layers"])
