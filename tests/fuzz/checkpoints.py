"""Checkpoints, of which torch's are archives and pickles that anyone may have made."""

import json
import struct
import tempfile
import zipfile
from functools import cache
from io import BytesIO
from pathlib import Path

import torch
from safetensors.torch import save as save_safetensors

from fuseline.export.checkpoint.checkpoint import read_checkpoint
from fuseline.serve.errors import CheckpointError
from tests.fuzz.target import Target, check_message


def _checkpoint(data: bytes, name: str = "checkpoint.pt") -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(data)
        try:
            read_checkpoint(path)
        except CheckpointError as error:
            check_message(error, most=100_000)


def _safetensors(data: bytes) -> None:
    _checkpoint(data, "model.safetensors")


def _state() -> dict[str, torch.Tensor]:
    return {
        "conv1.weight": torch.ones(4, 3, 3, 3),
        "bn1.running_var": torch.ones(4),
        "bn1.num_batches_tracked": torch.tensor(3),
        "fc.weight": torch.ones(2, 4),
    }


@cache
def _torch_files() -> list[bytes]:
    files = []
    for contents, zipped in ((_state(), True), ({"model": _state(), "epoch": 3}, True), (_state(), False)):
        file = BytesIO()
        torch.save(contents, file, _use_new_zipfile_serialization=zipped)
        files.append(file.getvalue())
    return [*files, zip_bomb(), deep_pickle(100_000), b"\x80\x02" + b"(" * 100_000 + b"."]


def zip_bomb(size: int = 2**30) -> bytes:
    """An archive that looks as torch's, whose pickle is `size` zeros deflated."""
    file = BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("a/data.pkl", "w") as part:
        for _ in range(size // 2**20):
            part.write(bytes(2**20))
    return file.getvalue()


def deep_pickle(depth: int) -> bytes:
    """A pickle of lists within lists."""
    return b"\x80\x02" + b"]" * depth + b"a" * (depth - 1) + b"."


@cache
def _safetensors_files() -> list[bytes]:
    sound = save_safetensors(_state(), {"epoch": "3"})
    deep = b'{"a":' * 20_000
    huge = json.dumps({"a": {"dtype": "F32", "shape": [2**62, 4], "data_offsets": [0, 16]}}).encode()
    return [
        sound,
        struct.pack("<Q", len(deep)) + deep,
        struct.pack("<Q", 2**63) + b"{}",
        struct.pack("<Q", len(huge)) + huge + bytes(16),
    ]


TARGETS: dict[str, Target] = {
    "torch files": Target(_checkpoint, _torch_files),
    "safetensors": Target(_safetensors, _safetensors_files),
}
"""Readers of these."""
