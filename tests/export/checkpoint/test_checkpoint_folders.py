"""Folders and shards as transformers and timm save them, and the configuration beside them."""

import hashlib
import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from fuseline.export.checkpoint.checkpoint import read_checkpoint
from tests.export.checkpoint.refusals import refusal
from tests.export.small_weights import assert_same, small_network, without_counters

WEIGHTS = without_counters(dict(small_network().state_dict()))
HUGGING_FACE = {"model_type": "resnet", "id2label": {"1": "dog", "0": "cat"}}


def write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content), encoding="utf-8")


def write_shards(folder: Path, *, safetensors: bool = True) -> Path:
    """The weights in two shards; gives the index."""
    stem, suffix = ("model", "safetensors") if safetensors else ("pytorch_model", "bin")
    names = sorted(WEIGHTS)
    weight_map = {}
    for number, part in enumerate((names[:3], names[3:]), 1):
        file = folder / f"{stem}-0000{number}-of-00002.{suffix}"
        tensors = {name: WEIGHTS[name] for name in part}
        save_file(tensors, file) if safetensors else torch.save(tensors, file)
        weight_map |= dict.fromkeys(part, file.name)
    index = folder / f"{stem}.{suffix}.index.json"
    write_json(index, {"metadata": {"total_size": 1}, "weight_map": weight_map})
    return index


@pytest.mark.parametrize("safetensors", [True, False], ids=["safetensors", "bin"])
@pytest.mark.parametrize("given", ["index", "folder"])
def test_shards_are_read_by_their_index(tmp_path, safetensors, given):
    index = write_shards(tmp_path, safetensors=safetensors)
    write_json(tmp_path / "config.json", HUGGING_FACE)
    checkpoint = read_checkpoint(index if given == "index" else tmp_path)
    assert_same(checkpoint.tensors, WEIGHTS)
    assert checkpoint.config == HUGGING_FACE
    assert checkpoint.metadata == {"labels": ["cat", "dog"]}
    assert any("from 2 shards" in note for note in checkpoint.notes)
    files = sorted(tmp_path.glob("*-of-*"))
    lines = "".join(f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.name}\n" for file in files)
    assert checkpoint.sha256 == hashlib.sha256(lines.encode()).hexdigest()


def test_a_missing_shard_is_named(tmp_path):
    index = write_shards(tmp_path)
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    assert "lists the shard model-00002-of-00002.safetensors, which isn't beside it" in refusal(index)


def test_shards_beyond_the_limit_are_refused_unread(tmp_path, monkeypatch):
    index = write_shards(tmp_path)
    monkeypatch.setattr("fuseline.export.checkpoint.checkpoint_folder.MAX_CHECKPOINT_BYTES", 500)
    assert "have more than 500 bytes" in refusal(index)


def test_a_tensor_in_two_shards(tmp_path):
    index = write_shards(tmp_path)
    second = tmp_path / "model-00002-of-00002.safetensors"
    names = json.loads(index.read_text())["weight_map"]
    name = next(name for name, file in names.items() if file != second.name)
    save_file({n: WEIGHTS[n] for n, file in names.items() if file == second.name} | {name: WEIGHTS[name]}, second)
    assert f"{name} is in two shards" in refusal(index)


def test_a_tensor_that_is_listed_but_absent(tmp_path):
    index = write_shards(tmp_path)
    content = json.loads(index.read_text())
    content["weight_map"]["layer9.weight"] = "model-00001-of-00002.safetensors"
    write_json(index, content)
    assert "the index has layer9.weight in model-00001-of-00002.safetensors, which lacks it" in refusal(tmp_path)


def test_a_tensor_that_the_index_does_not_list(tmp_path):
    index = write_shards(tmp_path)
    content = json.loads(index.read_text())
    del content["weight_map"]["fc.bias"]
    write_json(index, content)
    assert "doesn't list fc.bias" in refusal(tmp_path)


@pytest.mark.parametrize(
    "name", ["../model-00001-of-00002.safetensors", "/etc/passwd", "sub/shard.safetensors", "..", "", "C:\\x", "..\\x"]
)
def test_a_path_out_of_the_folder_is_refused_unread(tmp_path, name):
    folder = tmp_path / "model"
    folder.mkdir()
    write_shards(tmp_path)
    write_json(folder / "model.safetensors.index.json", {"weight_map": {"conv1.weight": name}})
    assert "outside of its folder" in refusal(folder)


@pytest.mark.parametrize("content", ["[]", "{}", '{"weight_map": []}', '{"weight_map": {"a": 1}}', "no json", '{"a": '])
def test_an_index_that_is_none(tmp_path, content):
    (tmp_path / "model.safetensors.index.json").write_text(content)
    message = refusal(tmp_path)
    assert "model.safetensors.index.json" in message
    assert "expected" in message or "again" in message


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize("given", ["file", "folder"])
def test_a_folder_with_a_configuration(tmp_path, name, given):
    file = tmp_path / name
    save_file(WEIGHTS, file) if name.endswith("safetensors") else torch.save(WEIGHTS, file)
    write_json(tmp_path / "config.json", HUGGING_FACE)
    checkpoint = read_checkpoint(file if given == "file" else tmp_path)
    assert_same(checkpoint.tensors, WEIGHTS)
    assert checkpoint.config == HUGGING_FACE
    assert checkpoint.metadata == {"labels": ["cat", "dog"]}
    assert checkpoint.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()


def test_a_file_of_another_name_has_nothing_to_do_with_the_configuration_beside_it(tmp_path):
    torch.save(WEIGHTS, tmp_path / "epoch3.pt")
    write_json(tmp_path / "config.json", HUGGING_FACE)
    checkpoint = read_checkpoint(tmp_path / "epoch3.pt")
    assert (checkpoint.config, checkpoint.metadata) == ({}, {})


def test_of_both_formats_safetensors_is_read(tmp_path):
    save_file(WEIGHTS, tmp_path / "model.safetensors")
    (tmp_path / "pytorch_model.bin").write_bytes(b"never read")
    checkpoint = read_checkpoint(tmp_path)
    assert_same(checkpoint.tensors, WEIGHTS)
    assert "not taken: pytorch_model.bin" in checkpoint.notes[0]


def test_a_folder_with_one_checkpoint_of_any_name(tmp_path):
    torch.save(WEIGHTS, tmp_path / "best.ckpt")
    (tmp_path / "log.txt").write_text("epoch 1")
    assert_same(read_checkpoint(tmp_path).tensors, WEIGHTS)


def test_a_folder_with_several_checkpoints_is_refused(tmp_path):
    for name in ("best.pt", "last.pt"):
        torch.save(WEIGHTS, tmp_path / name)
    assert "2 checkpoints, best.pt, last.pt; give the one that is meant" in refusal(tmp_path)


def test_a_folder_without_a_checkpoint_is_refused(tmp_path):
    write_json(tmp_path / "config.json", HUGGING_FACE)
    assert "a folder without a checkpoint" in refusal(tmp_path)


def test_a_configuration_that_is_no_json_is_left_out_and_said(tmp_path):
    save_file(WEIGHTS, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{")
    checkpoint = read_checkpoint(tmp_path)
    assert checkpoint.config == {}
    assert any("config.json beside the weights is left out" in note for note in checkpoint.notes)


def metadata_of(folder: Path, config: object, preprocessor: object | None = None) -> dict[str, object]:
    save_file(WEIGHTS, folder / "model.safetensors")
    write_json(folder / "config.json", config)
    if preprocessor is not None:
        write_json(folder / "preprocessor_config.json", preprocessor)
    return read_checkpoint(folder).metadata


CONVNEXT = {
    "image_processor_type": "ConvNextImageProcessor",
    "do_resize": True,
    "do_normalize": True,
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
    "size": {"shortest_edge": 224},
    "crop_pct": 0.875,
    "resample": 3,
}
VIT = {"image_processor_type": "ViTImageProcessor", "crop_pct": None}
FLOORED = {"crop_offset": "floored"}
NORMALISED = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, {"input_size": 224, "resize_shorter_side": 256, "interpolation": "bicubic"} | FLOORED),
        (
            {"resample": 2, "size": 224},
            {"input_size": 224, "resize_shorter_side": 256, "interpolation": "bilinear"} | FLOORED,
        ),
        ({"crop_pct": None}, {"input_size": 224, "resize_shorter_side": 256, "interpolation": "bicubic"} | FLOORED),
        ({"crop_pct": 0.95}, {"input_size": 224, "resize_shorter_side": 235, "interpolation": "bicubic"} | FLOORED),
        ({"size": {"shortest_edge": 384}}, {"input_size": 384, "resize_shorter_side": 384, "interpolation": "bicubic"}),
        (
            {"do_center_crop": True, "crop_size": {"height": 224, "width": 224}, "size": {"shortest_edge": 256}} | VIT,
            {"input_size": 224, "resize_shorter_side": 256, "interpolation": "bicubic"} | FLOORED,
        ),
        (
            {"do_center_crop": True, "crop_size": {"height": 224, "width": 224}, "size": {"shortest_edge": 256}},
            {"input_size": 224, "resize_shorter_side": 292, "interpolation": "bicubic"} | FLOORED,
        ),
        (
            {"size": {"height": 224, "width": 224}},
            {"input_size": 224, "resize_shorter_side": 224, "interpolation": "bicubic"},
        ),
        ({"size": {"height": 224, "width": 192}, "resample": 0}, {}),
        ({"do_resize": False}, {}),
    ],
    ids=[
        "usual",
        "old",
        "default crop",
        "crop",
        "384",
        "resize and crop",
        "crops twice",
        "square",
        "oblong",
        "no resize",
    ],
)
def test_the_preprocessor_of_transformers(tmp_path, changes, expected):
    found = metadata_of(tmp_path, {"model_type": "resnet"}, CONVNEXT | changes)
    found.pop("warnings", None)
    assert found == NORMALISED | expected


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"size": {"height": 224, "width": 224}}, "stretches every image to 224 x 224"),
        ({"size": {"shortest_edge": 384}}, "stretches every image to 384 x 384"),
        ({"size": {"height": 224, "width": 192}}, "no square"),
        ({"do_resize": False}, "never resizes"),
        ({"do_flip_channel_order": True}, "swaps red and blue"),
        ({"do_center_crop": True, "crop_size": 256}, "resizes to 224 and pads to 256"),
    ],
)
def test_what_fuseline_does_otherwise_than_the_preprocessor_is_a_warning(tmp_path, changes, said):
    (warning,) = metadata_of(tmp_path, {"model_type": "resnet"}, CONVNEXT | changes)["warnings"]
    assert said in warning


@pytest.mark.parametrize(
    ("changes", "mean", "std"),
    [
        ({"do_normalize": False}, 0, 1),
        ({"rescale_factor": 1 / 127.5, "image_mean": [1, 1, 1], "image_std": [1, 1, 1]}, 0.5, 0.5),
        ({"rescale_factor": 1 / 127.5, "rescale_offset": True, "do_normalize": False}, 0.5, 0.5),
        ({"do_rescale": False, "image_mean": [127.5] * 3, "image_std": [51.0] * 3}, 0.5, 0.2),
    ],
)
def test_the_normalisation_is_of_pixels_from_0_to_1(tmp_path, changes, mean, std):
    found = metadata_of(tmp_path, {"model_type": "resnet"}, CONVNEXT | changes)
    assert found["mean"] == pytest.approx([mean] * 3)
    assert found["std"] == pytest.approx([std] * 3)


def test_the_efficientnet_preprocessor_divides_by_the_deviation_twice(tmp_path):
    settings = {"image_processor_type": "EfficientNetImageProcessor", "include_top": True, "image_std": [0.5] * 3}
    assert metadata_of(tmp_path, {"model_type": "efficientnet"}, CONVNEXT | settings)["std"] == [0.25] * 3


def test_levit_resizes_to_more_than_it_says(tmp_path):
    levit = {"image_processor_type": "LevitImageProcessor", "do_center_crop": True, "crop_size": 224}
    assert metadata_of(tmp_path, {"model_type": "levit"}, CONVNEXT | levit)["resize_shorter_side"] == 256


@pytest.mark.parametrize("crop_pct", [1e-320, 10**400, "0.9"])
def test_a_crop_that_is_no_share_gives_no_size(tmp_path, crop_pct):
    assert metadata_of(tmp_path, {"model_type": "x"}, CONVNEXT | {"crop_pct": crop_pct})["input_size"] == 224
    config = TIMM | {"pretrained_cfg": TIMM["pretrained_cfg"] | {"crop_pct": crop_pct}}
    assert "resize_shorter_side" not in metadata_of(tmp_path, config)


def test_images_of_timm_that_are_not_square_are_said(tmp_path):
    config = TIMM | {"pretrained_cfg": TIMM["pretrained_cfg"] | {"input_size": [3, 160, 224]}}
    (warning,) = metadata_of(tmp_path, config)["warnings"]
    assert "160 x 224, no square" in warning


def test_the_sizes_are_those_that_transformers_uses(tmp_path):
    """A picture whose pixels say where they came from, through transformers and by the sizes that were read."""
    transformers = pytest.importorskip("transformers")
    processor = transformers.ConvNextImageProcessor(size={"shortest_edge": 64}, crop_pct=0.8, do_normalize=False)
    processor.save_pretrained(tmp_path)
    found = metadata_of(tmp_path, {"model_type": "resnet"})
    assert (found["input_size"], found["resize_shorter_side"]) == (64, 80)
    ramp = torch.arange(200.0).repeat(3, 160, 1)
    theirs = processor(ramp, do_rescale=False, return_tensors="pt")["pixel_values"][0]
    assert theirs.shape == (3, 64, 64)
    # 64 of 80 rows of 160: every pixel of the crop is 2 of the picture's.
    assert float(theirs[0, 30, 40] - theirs[0, 30, 20]) == pytest.approx(20 * 160 / 80, abs=0.1)


def test_labels_without_names_are_none(tmp_path):
    config = {"model_type": "resnet", "id2label": {"0": "LABEL_0", "1": "LABEL_1"}}
    assert metadata_of(tmp_path, config) == {}


TIMM = {
    "architecture": "resnet18",
    "num_classes": 2,
    "label_names": ["cat", "dog"],
    "pretrained_cfg": {
        "mean": [0.5, 0.5, 0.5],
        "std": [0.25, 0.25, 0.25],
        "input_size": [3, 224, 224],
        "crop_pct": 0.95,
        "interpolation": "bicubic",
        "crop_mode": "center",
    },
}


def test_the_configuration_of_timm(tmp_path):
    assert metadata_of(tmp_path, TIMM) == {
        "labels": ["cat", "dog"],
        "mean": [0.5, 0.5, 0.5],
        "std": [0.25, 0.25, 0.25],
        "input_size": 224,
        "resize_shorter_side": 235,
        "interpolation": "bicubic",
    }


def test_the_configuration_of_an_older_timm(tmp_path):
    flat = {"architecture": "resnet18", "labels": ["cat", "dog"], **TIMM["pretrained_cfg"]}
    assert metadata_of(tmp_path, flat)["labels"] == ["cat", "dog"]
    assert metadata_of(tmp_path, flat)["resize_shorter_side"] == 235


def test_a_crop_mode_that_is_not_ours_is_said(tmp_path):
    config = TIMM | {"pretrained_cfg": TIMM["pretrained_cfg"] | {"crop_mode": "squash"}}
    found = metadata_of(tmp_path, config)
    assert "resize_shorter_side" not in found
    assert any("crop mode squash" in warning for warning in found["warnings"])


def test_what_the_file_itself_says_wins_over_the_folder(tmp_path):
    save_file(WEIGHTS, tmp_path / "model.safetensors", metadata={"labels": '["lion", "wolf"]'})
    write_json(tmp_path / "config.json", HUGGING_FACE)
    assert read_checkpoint(tmp_path).metadata["labels"] == ["lion", "wolf"]


def test_a_folder_that_transformers_saved(tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.ResNetConfig(
        depths=[1, 1], hidden_sizes=[16, 32], embedding_size=16, num_labels=2, id2label={0: "cat", 1: "dog"}
    )
    network = transformers.ResNetForImageClassification(config)
    network.save_pretrained(tmp_path, max_shard_size="8KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    checkpoint = read_checkpoint(tmp_path)
    assert_same(checkpoint.tensors, without_counters(network.state_dict()))
    assert checkpoint.config["depths"] == [1, 1]
    assert checkpoint.metadata["labels"] == ["cat", "dog"]


def test_a_configuration_that_is_a_pipe_is_left_out_and_said(tmp_path):
    save_file(WEIGHTS, tmp_path / "model.safetensors")
    os.mkfifo(tmp_path / "config.json")
    assert any("config.json is no regular file" in note for note in read_checkpoint(tmp_path).notes)


@pytest.mark.parametrize("name", ["a" * 300, "a\0b", "\ud800"])
def test_a_shard_whose_name_no_file_has_is_refused(tmp_path, name):
    write_json(tmp_path / "model.safetensors.index.json", {"weight_map": {"conv1.weight": name}})
    assert "no file name" in refusal(tmp_path)
