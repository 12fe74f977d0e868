"""Every rule of the safetensors format has a file that breaks it."""

import json
import struct

import pytest
import torch
from safetensors.torch import save

from fuseline.export.checkpoint.checkpoint import read_checkpoint
from fuseline.serve.errors import CheckpointError

ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


def file_of(header: object, data: bytes = bytes(8)) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (struct.pack("<Q", 1000) + b"{}" + bytes(9), "header should have 1000 bytes"),
        (file_of(b'{"w": '), "damaged"),
        (
            file_of(b'{"w": ' + json.dumps(ENTRY).encode() + b', "w": ' + json.dumps(ENTRY).encode() + b"}"),
            "a name twice",
        ),
        (file_of({"w": ENTRY | {"dtype": "F31"}}), "unknown type F31"),
        (file_of({"w": ENTRY | {"shape": [3]}}), "can't have 8 bytes"),
        (file_of({"w": ENTRY | {"shape": [-2]}}), "has the shape"),
        (file_of({"w": ENTRY | {"shape": [2.0]}}), "has the shape"),
        (file_of({"w": ENTRY | {"data_offsets": [8, 16]}}, bytes(16)), "should begin at 0"),
        (file_of({"w": ENTRY, "v": ENTRY}), "should begin at 8"),
        (file_of({"w": ENTRY}, bytes(9)), "it has 9"),
        (file_of({"w": ENTRY}, bytes(7)), "outside of the file"),
        (file_of({"w": {"dtype": "F32", "shape": [2]}}), "data_offsets"),
        (file_of({"w": [1]}), "damaged"),
        (file_of({"w": ENTRY, "__metadata__": ["a"]}), "__metadata__ is a list"),
        (file_of({"w": ENTRY, "__metadata__": None}), "__metadata__ is a NoneType"),
        (file_of({"w": ENTRY, "__metadata__": "a"}), "__metadata__ is a str"),
        (file_of({"w": ENTRY | {"shape": [2, *[1] * 100_000]}}), "has 100001 dimensions"),
        (file_of({"w" * 2000: ENTRY}), "beyond 1000 characters"),
        (file_of({f"w{i}": ENTRY for i in range(20_001)}), "more than 20000 tensors"),
    ],
)
def test_refuses_a_file_that_breaks_the_format(tmp_path, content, said):
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="is a damaged safetensors file") as caught:
        read_checkpoint(path)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2]
)
def test_every_kind_of_float_becomes_float32(tmp_path, dtype):
    path = tmp_path / "model.safetensors"
    tensor = torch.tensor([0.5, -2.0, 4.0]).to(dtype)
    path.write_bytes(save({"a": tensor, "b.weight": torch.eye(2), "empty": torch.empty(0)}))
    found = read_checkpoint(path).tensors
    assert found["a"].dtype == torch.float32
    assert torch.equal(found["a"], tensor.float())
    assert found["empty"].shape == (0,)


def test_data_at_an_odd_address_is_read(tmp_path):
    """Writers before 0.2 didn't align the header."""
    path = tmp_path / "model.safetensors"
    path.write_bytes(file_of(json.dumps({"w": ENTRY}).encode() + b" ", struct.pack("<2f", 1.5, -2.0)))
    assert read_checkpoint(path).tensors["w"].tolist() == [1.5, -2.0]


def test_tensors_lie_in_the_memory_that_the_file_was_read_into(tmp_path):
    """So a file takes its own size in memory, and not twice that."""
    from safetensors.torch import save_file

    weights = {"a.weight": torch.rand(64, 64), "b.weight": torch.rand(64, 64)}
    save_file(weights, tmp_path / "model.safetensors")
    torch.save(weights, tmp_path / "model.pt")
    for name in ("model.safetensors", "model.pt"):
        found = read_checkpoint(tmp_path / name).tensors
        distance = abs(found["a.weight"].data_ptr() - found["b.weight"].data_ptr())
        assert 64 * 64 * 4 <= distance < 64 * 64 * 4 + 1024
