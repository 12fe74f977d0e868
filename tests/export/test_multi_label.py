"""Networks trained for several labels of a picture: told, exported, held against PyTorch and served as such."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from fuseline.export.artifacts import Fp16Options
from fuseline.export.assumptions.settling import _folders
from fuseline.export.checkpoint.checkpoint import Checkpoint, read_checkpoint
from fuseline.export.commands.export_command import export
from fuseline.export.facts.model_facts import ModelFacts, facts_from
from fuseline.export.folding.trace import trace
from fuseline.export.inspection.inspection_page import inspection_page
from fuseline.export.inspection.package_inspection import inspect_package
from fuseline.export.int8.closeness import agreement, answer_margins, same_answers
from fuseline.export.loading.loading import NetworkSource, network_of
from fuseline.export.pipeline import ExportOptions, ExportResult, export_checkpoint
from fuseline.export.progress import ConsoleProgress
from fuseline.export.sample import image_folder
from fuseline.export.verify import compare
from fuseline.serve.errors import ArchitectureError, InputError, VerificationError
from fuseline.serve.model_package import Artifact, Task, load_package
from tests.export.resnets import tiny_network

LABELS = ("cat", "dog", "bird", "fish", "frog")
SIDE = 64


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Smooth JPEGs of odd sizes."""
    folder = tmp_path_factory.mktemp("pictures")
    generator = np.random.default_rng(0)
    for number in range(12):
        coarse = generator.integers(0, 256, (5, 5, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((101 + 7 * number, 83), Image.Resampling.BICUBIC).save(folder / f"{number}.jpg")
    return folder


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of transformers with a small ResNet of several labels, about half of which hold for a picture."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(3)
    config = transformers.ResNetConfig(
        embedding_size=16,
        hidden_sizes=[16, 24, 32, 48],
        depths=[1, 1, 1, 1],
        layer_type="basic",
        problem_type="multi_label_classification",
        id2label=dict(enumerate(LABELS)),
        label2id={label: index for index, label in enumerate(LABELS)},
    )
    network = transformers.ResNetForImageClassification(config).eval()
    with torch.no_grad():
        probes = torch.randn(32, 3, SIDE, SIDE)
        for _ in range(3):  # logits of about -2 to 2, around 0
            logits = network(probes).logits
            network.classifier[1].weight /= logits.std(0)[:, None]
            network.classifier[1].bias -= network(probes).logits.mean(0)
    folder = tmp_path_factory.mktemp("saved")
    network.save_pretrained(folder)
    processor = transformers.ConvNextImageProcessorPil(size={"shortest_edge": SIDE}, crop_pct=0.875)
    processor.save_pretrained(folder)
    return folder


def exported(source: Path, out: Path, **options: Any) -> ExportResult:
    return export_checkpoint(ExportOptions(NetworkSource(source), out=out, **options), ConsoleProgress())


@pytest.fixture(scope="module")
def result(saved: Path, pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> ExportResult:
    """The export of `saved`."""
    return exported(saved, tmp_path_factory.mktemp("out") / "several", fp16=Fp16Options(), images=pictures)


def test_the_package_says_so_everywhere(result: ExportResult) -> None:
    manifest = load_package(result.folder).manifest
    assert (manifest.task, manifest.labels) == ("multi-label", LABELS)
    for verified in manifest.verification:
        assert verified.label_set_agreement == verified.agreement == 1.0
        assert "label-set agreement" in verified.bar or verified.artifact == "model.onnx"
    page = (result.folder / "report.html").read_text()
    assert "5 labels of which any number may hold" in page
    assert "Label-set agreement" in page
    assert "Top-1" not in page
    found = inspect_package(load_package(result.folder))
    assert found.inspection is not None
    assert "labels of which any number may hold" in inspection_page(found.inspection, found)
    assert any("several labels of one picture" in note for note in found.inspection.notes)


def test_answers_are_those_of_transformers_own_pipeline(saved: Path, pictures: Path, result: ExportResult) -> None:
    from fuseline.serve.client import Client
    from tests.serve.processes import server_process

    transformers = pytest.importorskip("transformers")
    pipeline = transformers.pipeline(
        "image-classification",
        model=str(saved),
        image_processor=transformers.ConvNextImageProcessorPil.from_pretrained(saved),
    )
    files = sorted(pictures.glob("*.jpg"))
    theirs = [{each["label"]: each["score"] for each in pipeline(str(file), top_k=len(LABELS))} for file in files]
    arguments = ("--port", 0, "--http-port", 0, "--backend", "onnxruntime")
    with server_process(result.folder, *arguments) as server, Client(server.address) as client:
        answers = client.classify(files, top_k=len(LABELS)).results
    for answer, scores in zip(answers, theirs, strict=True):
        assert {p.label: p.probability for p in answer.predictions} == pytest.approx(scores, abs=2e-4)
    held = [sum(score >= 0.5 for score in scores.values()) for scores in theirs]
    assert len(set(held)) > 1, "pictures have one label, several or none"
    assert any(abs(sum(scores.values()) - 1) > 0.2 for scores in theirs)


def written(folder: Path, classes: int = 5, **config: object) -> Checkpoint:
    weights = tiny_network().state_dict()
    for name in ("linear.weight", "linear.bias"):
        weights[name] = weights[name][:classes].clone()
    save_file(weights, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    return read_checkpoint(folder)


def facts_of(checkpoint: Checkpoint, task: Task | None = None) -> ModelFacts:
    network = network_of(checkpoint, NetworkSource(checkpoint.path))
    return facts_from(checkpoint, network, task=task, input_size=(32, 32))


@pytest.mark.parametrize(
    ("config", "task"),
    [
        ({"problem_type": "multi_label_classification"}, "multi-label"),
        ({"problem_type": "single_label_classification"}, "single-label"),
        ({"problem_type": None}, "single-label"),
        ({"model_type": "resnet"}, "single-label"),
        ({"architecture": "resnet18", "problem_type": "multi_label_classification"}, "multi-label"),
    ],
    ids=["multi", "single", "none", "absent", "timm's"],
)
def test_the_configuration_tells_and_a_flag_wins(tmp_path: Path, config: dict[str, object], task: Task) -> None:
    checkpoint = written(tmp_path, **config)
    assert facts_of(checkpoint).task == task
    for flag in ("single-label", "multi-label"):
        assert facts_of(checkpoint, flag).task == flag  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("key", "value", "task"),
    [
        ("problem_type", "multi_label_classification", "multi-label"),
        ("task", "multilabel", "multi-label"),
        ("task", "multiclass", "single-label"),
        ("task", "pretraining", "single-label"),
        ("task", 3, "single-label"),
    ],
)
def test_what_stands_beside_the_weights_tells_too(tmp_path: Path, key: str, value: object, task: Task) -> None:
    weights = tiny_network().state_dict()
    for name, content in (
        ("plain.pt", {"state_dict": weights, key: value}),
        ("lightning.ckpt", {"state_dict": weights, "hyper_parameters": {key: value}}),
    ):
        torch.save(content, tmp_path / name)
        checkpoint = read_checkpoint(tmp_path / name)
        assert facts_of(checkpoint).task == task
        assert not any("left out" in note for note in checkpoint.notes)


@pytest.mark.parametrize("task", ["single-label", "multi-label"])
def test_what_convert_writes_into_a_file_is_read_from_it(tmp_path: Path, task: Task) -> None:
    metadata = {"format": "pt", "task": json.dumps(task), "crop_offset": json.dumps("floored")}
    save_file(tiny_network().state_dict(), tmp_path / "converted.safetensors", metadata=metadata)
    checkpoint = read_checkpoint(tmp_path / "converted.safetensors")
    assert checkpoint.metadata == {"task": task, "crop_offset": "floored"}


def test_a_problem_that_is_not_known_is_noted(tmp_path: Path) -> None:
    checkpoint = written(tmp_path, problem_type="ranking")
    assert any("`problem_type` in the folder's configuration is left out" in note for note in checkpoint.notes)
    assert facts_of(checkpoint).task == "single-label"


def test_regression_is_refused_with_a_cure_that_works(tmp_path: Path) -> None:
    checkpoint = written(tmp_path, problem_type="regression")
    with pytest.raises(InputError, match="trained for regression.*--task single-label or --task multi-label"):
        facts_of(checkpoint)
    assert facts_of(checkpoint, "single-label").task == "single-label"
    with pytest.raises(InputError, match="trained for regression.*2 or more classes$"):
        facts_of(written(tmp_path, classes=1, problem_type="regression"))


def test_folders_tell_no_truth_of_pictures_with_several_labels(tmp_path: Path) -> None:
    checkpoint = written(tmp_path)
    for label in LABELS:
        (tmp_path / "pictures" / label).mkdir(parents=True)
        Image.new("RGB", (40, 40)).save(tmp_path / "pictures" / label / "1.png")
    images = image_folder(tmp_path / "pictures", 10)
    assert _folders(images, facts_of(checkpoint, "single-label"), {})[0] is not None
    several = facts_of(checkpoint, "multi-label")
    assert _folders(images, several, {}) == (None, "")
    with pytest.raises(InputError, match="folders=classes: a folder tells one class .* leave it out"):
        _folders(images, several, {"folders": "classes"})


def test_a_single_logit_is_refused_and_the_cure_names_the_flag_it_needs(tmp_path: Path) -> None:
    checkpoint = written(tmp_path, classes=1, problem_type="multi_label_classification")
    with pytest.raises(InputError, match=r"stack the weight to \[0, w\].* export it with --task single-label"):
        facts_of(checkpoint)
    # The cure: two rows, by softmax, are the sigmoid.
    logit = np.float32(0.7)
    softmax = np.exp([0, logit]) / np.exp([0, logit]).sum()
    assert softmax[1] == pytest.approx(1 / (1 + np.exp(-logit)))
    with pytest.raises(InputError, match=r"the bias to \[0, b\]$"):
        facts_of(written(tmp_path, classes=1))


def test_the_flag_goes_into_the_package(tiny_checkpoint: Path, tmp_path: Path) -> None:
    export(tiny_checkpoint, out=tmp_path / "flagged", task="multi-label", max_images=4)
    manifest = load_package(tmp_path / "flagged").manifest
    assert manifest.task == "multi-label"
    assert all(verified.label_set_agreement is not None for verified in manifest.verification)


def test_a_flag_of_another_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--task 'sigmoid': single-label or multi-label was expected"):
        export(tmp_path / "x.pt", task="sigmoid")


def test_a_network_that_ends_in_a_sigmoid_is_told_how_it_is_served() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Sigmoid())
    with pytest.raises(ArchitectureError, match="ends in a sigmoid.*with --task multi-label the server applies it"):
        trace(network.eval(), (3, 8, 8))


def logits_of(*rows: tuple[float, ...]) -> NDArray[np.float32]:
    return np.array(rows, np.float32)


EXPECTED = logits_of((3, 2, -1), (-1, -2, -3), (0.5, -4, 0.001), (1, 1, 1))


def test_answers_are_sets_of_labels() -> None:
    # Another order of the same labels; one more label; one less, at the edge; NaN.
    served = logits_of((2, 3, -2), (-1, -2, 0.1), (0.5, -4, -0.001), (1, 1, np.nan))
    assert same_answers(served, EXPECTED, "multi-label").tolist() == [True, False, False, False]
    assert agreement(served, EXPECTED, "multi-label") == 0.25
    assert agreement(EXPECTED, EXPECTED, "multi-label") == 1.0
    margins = answer_margins(served[:3], EXPECTED[:3], "multi-label")
    np.testing.assert_allclose(margins, [0, 3, 0.001])
    # The most probable class of the first differs, and of no other.
    assert same_answers(served, EXPECTED).tolist() == [False, False, True, False]


def judged(precision: str, served: NDArray[np.float32], expected: NDArray[np.float32], **bar: float) -> Any:
    artifact = Artifact.model_validate(
        {"path": "model.onnx", "sha256": "0" * 64, "bytes": 1, "format": "onnx", "precision": precision}
    )
    return compare(artifact, "test", "rows", expected, served, task="multi-label", **bar)


def test_the_bar_is_on_sets_and_ties_within_fp16_are_excused() -> None:
    expected = np.tile(logits_of((8, -8, 0.004)), (1000, 1))
    tied = expected.copy()
    tied[:100, 2] = -0.004
    verdict = judged("fp16", tied, expected)
    assert (verdict.label_set_agreement, verdict.top1_agreement, verdict.ties) == (0.9, 1.0, 100)
    assert verdict.passed
    assert verdict.agreement == 0.9
    assert "label-set agreement at least 99.5%, ties within FP16's resolution apart" in verdict.bar
    expected[:, 2], tied[:, 2] = 0.05, np.where(np.arange(1000) < 6, -0.05, 0.05)
    verdict = judged("fp16", tied, expected)
    assert (verdict.passed, verdict.ties, verdict.top1_agreement) == (False, 0, 1.0)
    assert judged("int8", tied, expected, min_agreement=0.99).passed
    assert not judged("int8", tied, expected, min_agreement=0.995).passed


def test_the_order_of_labels_that_hold_is_no_disagreement() -> None:
    expected = np.tile(logits_of((3.1, 3.0, -3)), (100, 1))
    served = np.tile(logits_of((3.0, 3.1, -3)), (100, 1))
    verdict = judged("int8", served, expected)
    assert (verdict.passed, verdict.agreement, verdict.top1_agreement) == (True, 1.0, 0.0)


def test_an_export_below_the_bar_says_of_what(tmp_path: Path) -> None:
    from fuseline.export.verify import check_passed

    expected = np.tile(logits_of((5, -5, 0.3)), (10, 1))
    with pytest.raises(VerificationError, match="label-set agreement 0.00% on 10 images.*label-set agreement at least"):
        check_passed([judged("int8", -expected, expected)])
