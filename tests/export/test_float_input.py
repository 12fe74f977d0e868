"""`export --input`: packages for clients of ordinary exports, from the command line to what serves them."""

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from fuseline.export.facts.graph_interface import graph_interface
from fuseline.export.loading.loading import NetworkSource
from fuseline.export.pipeline import ExportOptions, export_checkpoint
from fuseline.export.progress import LogProgress
from fuseline.serve.backends import open_backend
from fuseline.serve.backends.registry import CPU_BACKENDS
from fuseline.serve.errors import InputError
from fuseline.serve.input_rows import row_maker
from fuseline.serve.model_package import Manifest, ModelPackage, load_package
from fuseline.serve.package_engines import add_engine
from fuseline.serve.precision import FP16_LARGEST
from tests.bf16 import CPU_HAS_BF16
from tests.commands import Run, only_error
from tests.export.float_graphs import FLOATS
from tests.export.resnets import tiny_network
from tests.refusals import refusal_of

NAMES = {"fp32-nchw": ("input", "output"), "fp16-nchw": ("gpu_0/data:0", "conv1.weight")}


@pytest.fixture(scope="module")
def packages(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, ModelPackage]:
    """The packages of `tiny_checkpoint` that take floats, FP32 and FP16; the second by names of its client's."""
    from fuseline.export.artifacts import Fp16Options

    found = {}
    for takes, names in NAMES.items():
        out = tmp_path_factory.mktemp("packages") / takes
        input_name, output_name = names if takes == "fp16-nchw" else (None, None)
        options = ExportOptions(
            NetworkSource(tiny_checkpoint),
            out=out,
            fp16=Fp16Options(),
            input_format=takes,
            input_name=input_name,
            output_name=output_name,
            generated_images=16,
        )
        export_checkpoint(options, LogProgress())
        found[takes] = load_package(out)
    return found


@pytest.mark.parametrize("takes", FLOATS)
def test_every_precision_kept_its_bar_on_every_cpu_runtime(packages: dict[str, ModelPackage], takes: str) -> None:
    checks = packages[takes].manifest.verification
    assert len(checks) == 2 * len(CPU_BACKENDS) + CPU_HAS_BF16
    assert all(check.passed for check in checks if check.precision is None)
    fp32 = [check for check in checks if check.artifact == "model.onnx" and check.precision is None]
    # Rounding a picture to FP16 moves logits by far less than the bar.
    most = 1e-5 if takes == "fp32-nchw" else 1e-4
    assert all(check.max_abs_difference <= most * check.logit_range for check in fp32)


@pytest.mark.parametrize("takes", FLOATS)
def test_graphs_and_manifest_have_the_clients_names(packages: dict[str, ModelPackage], takes: str) -> None:
    package = packages[takes]
    manifest, names = package.manifest, NAMES[takes]
    assert (manifest.input.name, manifest.output_name) == names
    assert (manifest.input.format.name, manifest.normalization.folded) == (takes, False)
    for artifact in manifest.artifacts:
        graph = onnx.load_model_from_string(package.read(artifact)).graph
        ((taken,), (given,)) = graph.input, graph.output
        assert (taken.name, given.name) == names
        assert taken.type.tensor_type.elem_type == getattr(onnx.TensorProto, manifest.input.format.onnx_type)
        assert [dim.dim_value for dim in taken.type.tensor_type.shape.dim] == [0, 3, 32, 32]
        assert given.type.tensor_type.elem_type == onnx.TensorProto.FLOAT


@pytest.mark.parametrize("takes", FLOATS)
@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_the_served_graphs_equal_the_users_own_module_on_its_own_tensors(
    packages: dict[str, ModelPackage], takes: str, backend: str
) -> None:
    spec = packages[takes].manifest.input
    images = torch.randn(4, 3, 32, 32).to(getattr(torch, spec.dtype))
    with torch.inference_mode():
        expected = tiny_network()(images.float()).numpy()
    opened, _ = open_backend(packages[takes], backend=backend, precision="fp32", buckets=(4,), threads=1)
    logits = opened.infer(images.numpy())
    opened.close()
    assert logits.dtype == np.float32
    assert np.abs(logits - expected).max() < 1e-4 * np.ptp(expected)


@pytest.mark.parametrize("takes", FLOATS)
def test_logits_are_those_of_the_package_of_pixels(
    packages: dict[str, ModelPackage], tiny_package: Path, takes: str
) -> None:
    pixels = np.random.default_rng(2).integers(0, 256, (4, 32, 32, 3), np.uint8)
    answers = []
    for package in (load_package(tiny_package), packages[takes]):
        opened, _ = open_backend(package, backend="onnxruntime", precision="fp32", buckets=(4,), threads=1)
        answers.append(opened.infer(row_maker(package.manifest)(pixels)))
        opened.close()
    assert np.abs(answers[0] - answers[1]).max() < 1e-4 * np.ptp(answers[0])


@pytest.mark.parametrize("takes", FLOATS)
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_engines_are_built_and_entered(
    packages: dict[str, ModelPackage], takes: str, precision: str, tmp_path: Path
) -> None:
    pytest.importorskip("tensorrt_rtx")
    folder = shutil.copytree(packages[takes].folder, tmp_path / "package")
    from contextlib import nullcontext

    added = add_engine(
        folder,
        capability="sm89",
        precision=precision,
        max_batch=4,
        show_progress=lambda: nullcontext(lambda phase, share: None),
        on_wait=lambda: None,
    )
    assert added.built is not None
    kind = {"fp32": "FLOAT", "fp16": "HALF"}[precision]
    assert added.built.precision_counts["CONVOLUTION"] == {kind: 20}
    assert load_package(folder).find("tensorrt_rtx", precision) is not None


def test_report_and_inspection_say_who_normalises(
    packages: dict[str, ModelPackage], tiny_package: Path, run_fuseline: Run
) -> None:
    for takes in FLOATS:
        folder = packages[takes].folder
        assert not json.loads((folder / "report.json").read_text())["scale_folded"]
        page = (folder / "report.html").read_text()
        assert "images that the caller has normalised" in page
        assert "went into the first convolution" not in page
    assert "went into the first convolution" in (tiny_package / "report.html").read_text()
    shown = run_fuseline("inspect", packages["fp32-nchw"].folder)
    assert shown.exit_code == 0, shown.stderr
    text = " ".join(shown.stdout.split())
    assert "input 3 x 32 x 32 float32 takes input, FP32 NCHW [images, 3, 32, 32]: (pixel / 255 - mean) / std" in text
    assert "gives logits as output, FP32 [images, 10]" in text
    pixels = " ".join(run_fuseline("inspect", tiny_package).stdout.split())
    assert "takes image, UINT8 NHWC [images, 32, 32, 3]: pixels, which the graph normalises by mean 0.485" in pixels


def test_an_inspection_sees_the_first_layers_weights_as_trained(
    packages: dict[str, ModelPackage], tiny_package: Path
) -> None:
    from fuseline.export.inspection.package_inspection import inspect_package

    expected, *others = (
        inspect_package(package).inspection for package in (load_package(tiny_package), *packages.values())
    )
    assert expected is not None
    for found in others:
        assert found is not None
        assert [(layer.name, layer.multiply_adds, layer.receptive_field_pixels) for layer in found.layers] == [
            (layer.name, layer.multiply_adds, layer.receptive_field_pixels) for layer in expected.layers
        ]
        assert found.fp16.layers[0].largest_weight == pytest.approx(expected.fp16.layers[0].largest_weight, rel=1e-5)


# Flags


def test_names_are_by_default_those_of_the_format() -> None:
    found = {takes: graph_interface(takes, None, None) for takes in ("uint8-nhwc", *FLOATS)}
    assert [(each.input_name, each.output_name) for each in found.values()] == [
        ("image", "logits"), ("input", "output"), ("input", "output")
    ]  # fmt: skip
    own = graph_interface("uint8-nhwc", "pixels", None)
    assert (own.input_name, own.output_name) == ("pixels", "logits")


WRONG_FLAGS = {
    "an unknown format": (["--input", "fp32-nhwc"], "--input 'fp32-nhwc': uint8-nhwc, fp32-nchw or fp16-nchw was"),
    "no format": (["--input", ""], "--input '': uint8-nhwc"),
    "a long format": (["--input", "x" * 5000], "...x"),
    "an empty name": (["--input-name", ""], "--input-name '': a tensor's name has 1 to 128"),
    "a name with a space": (["--input-name", "my input"], "--input-name 'my input'"),
    "a name that ends in a line": (["--output-name", "output\n"], "--output-name 'output\\n'"),
    "a name of another alphabet": (["--output-name", "выход"], "--output-name"),
    "a name that is an option's": (["--input-name=-x"], "begins with a letter"),
    "a long name": (["--input-name", "x" * 129], "1 to 128"),
    "one name for both": (["--input-name", "data", "--output-name", "data"], "both be called 'data'"),
    "the output's customary name": (["--input", "fp32-nchw", "--input-name", "output"], "both be called 'output'"),
}


@pytest.mark.parametrize("case", WRONG_FLAGS)
def test_wrong_flags_are_refused_before_anything_is_read(run_fuseline: Run, tmp_path: Path, case: str) -> None:
    flags, words = WRONG_FLAGS[case]
    message = only_error(run_fuseline("export", tmp_path / "nothing.pt", *flags))
    assert words in message
    assert len(message) < 300
    assert not list(tmp_path.iterdir())


def test_a_normalisation_beyond_fp16_is_refused_for_fp16_only(tiny_checkpoint: Path, tmp_path: Path) -> None:
    def options(takes: str) -> ExportOptions:
        return ExportOptions(
            NetworkSource(tiny_checkpoint),
            out=tmp_path / takes,
            mean=(0.0,) * 3,
            std=(1e-5,) * 3,
            input_format=takes,
            generated_images=2,
        )

    message = refusal_of(InputError, export_checkpoint, options("fp16-nchw"))
    assert f"reaches 1e+05, and FP16 ends at {FP16_LARGEST:.0f}; take --input fp32-nchw" in message
    assert not (tmp_path / "fp16-nchw").exists()
    assert export_checkpoint(options("fp32-nchw")).manifest.input.dtype == "float32"


def test_pixels_may_have_names_of_the_clients_choice_too(tiny_checkpoint: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    options = ExportOptions(
        NetworkSource(tiny_checkpoint),
        out=tmp_path / "named",
        input_name="pixels",
        output_name="scores",
        generated_images=4,
        engine="sm89",
    )
    manifest: Manifest = export_checkpoint(options).manifest
    assert (manifest.input.name, manifest.output_name, manifest.input.datatype) == ("pixels", "scores", "UINT8")
    assert {artifact.format for artifact in manifest.artifacts} == {"onnx", "tensorrt_rtx"}
