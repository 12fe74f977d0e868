"""Pictures are resized and cropped to the pixel as the library does that the checkpoint's folder was written by."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import save_file

from fuseline.export.checkpoint.checkpoint import read_checkpoint
from fuseline.export.facts.model_facts import facts_from
from fuseline.export.loading.loading import NetworkSource, network_of
from fuseline.serve.images import decode_for
from fuseline.serve.model_package import InputSpec
from tests.export.resnets import tiny_network

SIZES = [(1024, 683), (683, 1024), (500, 375), (333, 500), (257, 256), (300, 301), (231, 230), (64, 211)]
TIMM: dict[str, Any] = {
    "architecture": "resnet18",
    "pretrained_cfg": {"input_size": [3, 64, 64], "crop_pct": 0.95, "interpolation": "bicubic"},
}


def picture(width: int, height: int) -> bytes:
    """A JPEG in which a crop that is off by one pixel shows."""
    pixels = np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=95)
    return file.getvalue()


def spec_of(folder: Path, config: dict[str, Any], preprocessor: dict[str, Any] | None = None) -> InputSpec:
    """The input that an export of the folder would have."""
    save_file(tiny_network().state_dict(), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    if preprocessor is not None:
        (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    checkpoint = read_checkpoint(folder)
    return facts_from(checkpoint, network_of(checkpoint, NetworkSource(folder))).input


def by_processor(processor: Any, data: bytes) -> NDArray[np.uint8]:
    image = Image.open(io.BytesIO(data)).convert("RGB")
    found = processor(image, do_rescale=False, do_normalize=False, return_tensors="np")["pixel_values"][0]
    return np.asarray(found).astype(np.uint8).transpose(1, 2, 0)


def pictures_of(shared: Path) -> list[bytes]:
    files = sorted((shared / "imagenet-samples").glob("*.JPEG"))[:6]
    return [path.read_bytes() for path in files] + [picture(*size) for size in SIZES]


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("convnext", {"size": {"shortest_edge": 64}, "crop_pct": 0.9}),
        ("convnext", {"size": {"shortest_edge": 224}, "crop_pct": 0.875}),
        ("convnext", {"size": {"shortest_edge": 64}, "crop_pct": 0.8, "do_center_crop": True, "crop_size": 64}),
        ("vit", {"size": {"shortest_edge": 70}, "do_center_crop": True, "crop_size": {"height": 65, "width": 65}}),
        ("levit", {"size": {"shortest_edge": 64}, "do_center_crop": True, "crop_size": {"height": 64, "width": 64}}),
        ("poolformer", {"size": {"shortest_edge": 64}, "crop_pct": 0.9, "do_center_crop": True, "crop_size": 64}),
    ],
    ids=["small", "usual", "crops twice", "resize and crop", "Levit", "PoolFormer"],
)
def test_pixels_are_those_of_transformers(
    tmp_path: Path, shared_data: Path, kind: str, settings: dict[str, Any]
) -> None:
    transformers = pytest.importorskip("transformers")
    names = {"convnext": "ConvNext", "vit": "ViT", "levit": "Levit", "poolformer": "PoolFormer"}
    processor = getattr(transformers, f"{names[kind]}ImageProcessorPil")(**settings)
    written = json.loads(processor.to_json_string())
    spec = spec_of(tmp_path, {"model_type": "resnet"}, written)
    assert spec.preprocessing.crop_offset == "floored"
    for data in pictures_of(shared_data):
        np.testing.assert_array_equal(decode_for(spec, data), by_processor(processor, data))


def test_pixels_are_those_of_torchvision_where_timm_wrote_the_folder(tmp_path: Path, shared_data: Path) -> None:
    transforms = pytest.importorskip("timm.data").create_transform(
        input_size=(3, 64, 64), crop_pct=0.95, interpolation="bicubic", normalize=False
    )
    spec = spec_of(tmp_path, TIMM)
    assert spec.preprocessing.crop_offset == "rounded"
    for data in pictures_of(shared_data):
        theirs: torch.Tensor = transforms(Image.open(io.BytesIO(data)).convert("RGB"))
        np.testing.assert_array_equal(decode_for(spec, data), theirs.numpy().transpose(1, 2, 0))


def test_the_two_differ_where_an_odd_number_of_pixels_is_left_over() -> None:
    data = picture(1024, 683)
    rounded, floored = (
        decode_for(
            InputSpec.model_validate(
                {
                    "height": 224,
                    "width": 224,
                    "preprocessing": {"resize_shorter_side": 256, "crop_offset": offset},
                }
            ),
            data,
        )
        for offset in ("rounded", "floored")
    )
    np.testing.assert_array_equal(rounded[:, :-1], floored[:, 1:])
    assert not np.array_equal(rounded, floored)


def test_a_package_of_before_crops_as_torchvision_does() -> None:
    old = {"height": 224, "width": 224, "preprocessing": {"resize_shorter_side": 256}}
    assert InputSpec.model_validate(old).preprocessing.crop_offset == "rounded"
