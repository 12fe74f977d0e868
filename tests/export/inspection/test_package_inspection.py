import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from fuseline.export.graph.onnx_operations import operations_from_onnx
from fuseline.export.inspection.inspection_page import inspection_page
from fuseline.export.inspection.inspection_view import show_package
from fuseline.export.inspection.network_inspection import inspect_checkpoint
from fuseline.export.inspection.package_inspection import InspectedPackage, inspect_package
from fuseline.export.inspection.receptive_field import receptive_fields
from fuseline.serve.errors import PackageError
from fuseline.serve.model_package import file_facts, load_package
from tests.export.small_graph import small_graph


def look(folder: Path) -> InspectedPackage:
    return inspect_package(load_package(folder))


@pytest.fixture
def copy(tiny_package: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_package, tmp_path / "copy"))


def test_a_package_has_its_checkpoints_layers(tiny_package: Path, tiny_checkpoint: Path) -> None:
    package, checkpoint = look(tiny_package).inspection, inspect_checkpoint(tiny_checkpoint)
    assert package is not None
    assert package.input_shape == checkpoint.input_shape
    assert package.multiply_adds == checkpoint.multiply_adds
    for ours, theirs in zip(package.layers, checkpoint.layers, strict=True):
        if ours.kind == "global-pool":
            assert ours.covers_input
            continue
        assert replace(ours, name="", parameters=0) == replace(theirs, name="", parameters=0)
        folded_bias = theirs.output_shape[0] if ours.kind == "conv" else 0
        assert ours.parameters == theirs.parameters + folded_bias


def test_its_weights_are_the_checkpoints_folded_ones(tiny_package: Path, tiny_checkpoint: Path) -> None:
    package, checkpoint = look(tiny_package).inspection, inspect_checkpoint(tiny_checkpoint)
    assert package is not None
    for ours, theirs in zip(package.fp16.layers, checkpoint.fp16.layers, strict=True):
        assert ours.largest_weight == pytest.approx(theirs.largest_weight, rel=1e-5)
        assert ours.largest_activation is None
    assert package.filters is not None
    assert checkpoint.filters is not None
    norms = [np.abs(look.weight).max(axis=(1, 2, 3), keepdims=True) for look in (package.filters, checkpoint.filters)]
    ours, theirs = package.filters.weight / norms[0], checkpoint.filters.weight / norms[1]
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_its_report_tells_the_gains(tiny_package: Path, tiny_checkpoint: Path) -> None:
    package, checkpoint = look(tiny_package).inspection, inspect_checkpoint(tiny_checkpoint)
    assert package is not None
    gains = {fold.batchnorm: fold.largest_gain for fold in package.applied_folds}
    assert gains == pytest.approx({norm.name: norm.gain.largest for norm in checkpoint.batchnorms})


@pytest.mark.parametrize(("text", "note"), [(None, "can't be read"), ("{", "1 faults"), ('{"folds": 3}', "1 faults")])
def test_a_broken_report_is_a_note(copy: Path, text: str | None, note: str) -> None:
    (copy / "report.json").unlink()
    if text is not None:
        (copy / "report.json").write_text(text)
    found = look(copy).inspection
    assert found is not None
    assert note in found.notes[0]
    assert found.applied_folds == ()


def test_damage_is_shown_before_it_is_an_error(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (copy / "model.fp16.onnx").write_bytes(b"other")
    found = look(copy)
    with pytest.raises(PackageError, match=r"model\.fp16\.onnx has 5 bytes"):
        show_package(found, as_json=False)
    out = capsys.readouterr().out
    assert "layer4.1.conv2" in out, "what is intact is shown"
    with pytest.raises(PackageError):
        show_package(found, as_json=True)
    plain = json.loads(capsys.readouterr().out)
    assert plain["damage"]["model.onnx"] is None
    assert "sha256" in plain["damage"]["model.fp16.onnx"]
    assert plain["inspection"]["layers"]
    assert found.inspection is not None
    assert ">damaged<" in inspection_page(found.inspection, found)


def test_layers_of_a_damaged_graph_are_not_shown(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (copy / "model.onnx").write_bytes(b"other")
    with pytest.raises(PackageError, match=r"model\.onnx has 5 bytes"):
        show_package(look(copy), as_json=False)
    assert "model.onnx is damaged, so its layers aren't shown" in capsys.readouterr().out


@pytest.mark.parametrize("data", [b"no graph", b""])
def test_a_graph_that_is_none_is_refused_though_its_sum_is_right(copy: Path, data: bytes) -> None:
    (copy / "model.onnx").write_bytes(data or b"\x08\x0a")
    manifest = json.loads((copy / "manifest.json").read_text())
    for artifact in manifest["artifacts"]:
        if artifact["path"] == "model.onnx":
            artifact.update(file_facts(copy, "model.onnx"))
    (copy / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(PackageError, match="export the model again"):
        look(copy)


def test_without_onnx_the_manifest_is_shown(
    tiny_package: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("fuseline.export.inspection.package_inspection.find_spec", lambda name: None)
    show_package(look(tiny_package), as_json=False)
    out = capsys.readouterr().out
    assert "model.fp16.onnx" in out
    assert "pip install 'fuseline[export]'" in out


def test_receptive_fields_of_a_graph_by_hand() -> None:
    model = onnx.load_model_from_string(small_graph("fp32"))
    graph = operations_from_onnx(model, spatial_axes=(-3, -2))
    found = receptive_fields(graph)
    # Stem 3x3 stride 2; max-pool 3x3 stride 2; 3x3 beside a shortcut; global pool.
    stem, pooled = 3, 3 + 2 * 2
    block = pooled + 2 * 4
    assert [found[name].pixels for name in ("stem", "pooled", "block", "sum")] == [
        (size, size) for size in (stem, pooled, block, block)
    ]
    assert found["scores"].pixels is None
    assert found["scores"].whole_input
    assert [o.name for o in graph.operations if o.parameters] == ["stem/Conv", "block/Conv", "fc/Gemm"]
