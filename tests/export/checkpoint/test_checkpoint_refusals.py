"""Files that are refused: no checkpoints, damaged ones, and weights that can't be used."""

import contextlib
import math
import pickle
import random
import textwrap
import warnings
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save as safetensors_bytes

from fuseline.export.checkpoint import checkpoint_file
from fuseline.export.checkpoint.checkpoint import read_checkpoint
from fuseline.serve.errors import CheckpointError
from tests.export.checkpoint.refusals import refusal
from tests.export.small_weights import small_network


@pytest.fixture
def weights() -> dict[str, torch.Tensor]:
    return dict(small_network().state_dict())


def test_refuses_a_missing_file_and_a_folder(tmp_path):
    assert "no file" in refusal(tmp_path / "absent.pt")
    assert "is a folder" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 46830571\n", "git lfs pull"),
        ("Gewichte für ein Netz, als Text\n".encode() * 9, "text that begins with 'Gewichte für"),
        (b"\x89\xff\x00\x01" + bytes(range(100)), "bytes that begin with 89 ff 00 01"),
        (pickle.dumps({"a": 1}), "a pickle that torch.save did not write"),
        (b"PK\x03\x04" + bytes(50), "cut short or damaged"),
    ],
    ids=["empty", "lfs", "text", "bytes", "plain-pickle", "no-zip-end"],
)
def test_refuses_what_is_no_checkpoint(tmp_path, content, said):
    path = tmp_path / "model.pt"
    path.write_bytes(content)
    assert said in refusal(path)


def test_refuses_a_zip_that_is_no_checkpoint(tmp_path):
    path = tmp_path / "model.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("holiday/beach.jpg", b"x")
    assert "holiday/beach.jpg" in refusal(path)


def test_refuses_a_compressed_archive_unread(tmp_path, weights):
    stored, path = tmp_path / "stored.pt", tmp_path / "model.pt"
    torch.save({"w": torch.zeros(100_000)}, stored)
    with zipfile.ZipFile(stored) as source, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as target:
        for name in source.namelist():
            target.writestr(name, source.read(name))
    assert "compressed" in refusal(path)


def test_refuses_a_file_above_the_limit(tmp_path, weights, monkeypatch):
    path = tmp_path / "model.pt"
    torch.save(weights, path)
    monkeypatch.setattr(checkpoint_file, "MAX_CHECKPOINT_BYTES", 100)
    assert "more than 100 bytes" in refusal(path)


@pytest.mark.parametrize("form", ["zip", "before-1.6", "safetensors"])
def test_refuses_a_file_cut_short_anywhere(tmp_path, weights, form):
    path = tmp_path / "model.pt"
    whole = file_bytes(weights, form, path)
    for length in {*range(1, len(whole), 97), len(whole) - 1}:
        path.write_bytes(whole[:length])
        message = refusal(path)
        assert "again" in message or "expected" in message


@pytest.mark.parametrize("form", ["zip", "before-1.6", "safetensors"])
def test_a_damaged_file_never_raises_anything_else(tmp_path, weights, form):
    path = tmp_path / "model.pt"
    whole = file_bytes({"state_dict": weights} if form != "safetensors" else weights, form, path)
    rng = random.Random(form)
    for _ in range(200):
        damaged = bytearray(whole)
        for _ in range(rng.randint(1, 4)):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        path.write_bytes(damaged)
        with contextlib.suppress(CheckpointError):
            read_checkpoint(path)


def file_bytes(content: dict, form: str, path: Path) -> bytes:
    if form == "safetensors":
        return safetensors_bytes(content)
    torch.save(content, path, _use_new_zipfile_serialization=form == "zip")
    return path.read_bytes()


def test_an_exported_program_is_refused(tmp_path):
    path = tmp_path / "model.pt2"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("model/archive_format", "pt2")
    assert "torch.export.load" in refusal(path)


def test_a_frozen_torchscript_file_is_refused_with_the_cure(tmp_path):
    path = tmp_path / "model.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.freeze(torch.jit.script(small_network().eval())).save(str(path))
    message = refusal(path)
    assert "torch.jit.freeze" in message
    assert "torch.save(model.state_dict(), PATH)" in message


def test_an_optimizer_only_file_is_refused(tmp_path):
    path = tmp_path / "optimizer.pt"
    network = small_network()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    sum(parameter.sum() for parameter in network.parameters()).backward()
    optimizer.step()
    for content in (optimizer.state_dict(), {"optimizer": optimizer.state_dict(), "epoch": 3}):
        torch.save(content, path)
        message = refusal(path)
        assert "state of an optimizer and no weights" in message
        assert "torch.save(model.state_dict(), PATH)" in message


def quantised_network() -> torch.nn.Module:
    return torch.ao.quantization.quantize_dynamic(small_network(), {torch.nn.Linear})


def quantisation_aware_network() -> torch.nn.Module:
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU()).train()
    network.qconfig = torch.ao.quantization.get_default_qat_qconfig("fbgemm")
    return torch.ao.quantization.prepare_qat(network)


@pytest.mark.parametrize(
    "make",
    [
        lambda: quantised_network().state_dict(),
        quantised_network,
        lambda: quantisation_aware_network().state_dict(),
        lambda: {"fc.weight": torch.zeros(4, 1, dtype=torch.uint8), "fc.weight.absmax": torch.ones(1)},
        lambda: {"fc.weight": torch.zeros(4, 4), "fc.weight.quant_state.bitsandbytes__nf4": torch.ones(1)},
        lambda: {"fc.weight": torch.zeros(4, 4), "fc.scale": torch.ones(1), "fc.zero_point": torch.ones(1)},
        lambda: {"fc.qweight": torch.zeros(4, 4, dtype=torch.int32), "fc.bias": torch.zeros(4)},
    ],
    ids=["state-dict", "module", "qat", "bitsandbytes", "bitsandbytes-4-bit", "scales", "gptq"],
)
def test_a_quantised_network_is_refused_with_the_cure(tmp_path, make):
    path = tmp_path / "model.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.save(make(), path)
    message = refusal(path)
    assert "holds a quantised network" in message
    assert "save the float model" in message


def test_an_object_that_is_no_checkpoint_is_named(tmp_path):
    path = tmp_path / "model.pt"
    torch.save(Path("somewhere"), path)
    assert "an object of pathlib." in refusal(path)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ([1, 2], "holds a list"),
        (torch.zeros(3), "holds a Tensor"),
        ({}, "keys are none"),
        ({"epoch": 3, "encoder": {"weight": torch.zeros(2)}}, "'encoder'"),
        ({"state_dict": {}}, "'state_dict'"),
        ({"bn1.num_batches_tracked": torch.tensor(3)}, "only counters"),
        ({0: torch.zeros(2)}, "0 (int)"),
    ],
)
def test_refuses_contents_without_named_tensors(tmp_path, content, said):
    path = tmp_path / "model.pt"
    torch.save(content, path)
    assert said in refusal(path)


def test_a_dict_within_itself_ends(tmp_path):
    path = tmp_path / "model.pt"
    content: dict[str, object] = {}
    content["model"] = content
    torch.save(content, path)
    assert "no tensors" in refusal(path)
    content["weight"] = torch.ones(2)
    torch.save(content, path)
    assert read_checkpoint(path).tensors.keys() == {"weight"}


@pytest.mark.parametrize(("value", "said"), [(math.nan, "1 NaN and 0 infinite"), (-math.inf, "0 NaN and 1 infinite")])
def test_refuses_weights_that_are_not_finite(tmp_path, weights, value, said):
    path = tmp_path / "model.pt"
    weights["conv1.weight"][1, 2, 0, 0] = value
    torch.save(weights, path)
    message = refusal(path)
    assert "conv1.weight" in message
    assert said in message


def test_refuses_float64_weights_beyond_float32(tmp_path, weights):
    path = tmp_path / "model.pt"
    weights["fc.bias"] = torch.tensor([1e300, 0.0], dtype=torch.float64)
    torch.save(weights, path)
    assert "fc.bias has 0 NaN and 1 infinite" in refusal(path)


@pytest.mark.parametrize(("value", "tiny"), [(-1e-9, True), (-0.25, False)])
def test_refuses_a_negative_running_variance(tmp_path, weights, value, tiny):
    path = tmp_path / "model.pt"
    weights["bn1.running_var"][2] = value
    torch.save(weights, path)
    message = refusal(path)
    assert f"bn1.running_var has the value {value:g}" in message
    assert ("tiny" in message) == tiny


def test_an_unsigned_running_variance_is_compared_too(tmp_path, weights):
    path = tmp_path / "model.pt"
    torch.save(weights | {"bn1.running_var": weights["bn1.running_var"].to(torch.uint64)}, path)
    assert "bn1.running_var" in read_checkpoint(path).tensors


def test_values_that_names_share_are_turned_into_float32_once(tmp_path):
    path = tmp_path / "model.pt"
    shared = torch.arange(4, dtype=torch.float16)
    torch.save({"a.weight": shared, "b.weight": shared, "c.weight": shared[:2]}, path)
    found = read_checkpoint(path).tensors
    assert found["a.weight"].data_ptr() == found["b.weight"].data_ptr()
    assert found["c.weight"].tolist() == [0, 1]


def quantised() -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.quantize_per_tensor(torch.eye(2), 0.1, 0, torch.qint8)


def sparse_rows() -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.eye(2).to_sparse_csr()


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: torch.empty(2, 2, device="meta"), "meta device"),
        (lambda: torch.eye(2).to_sparse(), "is sparse"),
        (sparse_rows, "is sparse"),
        (quantised, "is quantised"),
        (lambda: torch.ones(2, 2, dtype=torch.complex64), "is complex"),
        (lambda: torch.ones([1] * 40), "has 40 dimensions"),
        (lambda: torch.ones(1).expand(2**40), "more than the 4 bytes stored"),
    ],
    ids=["meta", "coo", "csr", "quantised", "complex", "dimensions", "expanded"],
)
def test_refuses_tensors_that_are_not_dense_floats(tmp_path, weights, make, said):
    path = tmp_path / "model.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.save(weights | {"fc.weight": make()}, path)
    message = refusal(path)
    assert "fc.weight" in message
    assert said in message


def test_a_state_dict_in_a_list_is_refused_with_lines_that_take_it_out(tmp_path, weights):
    path = tmp_path / "pair.pt"
    torch.save((3, weights), path)
    message = refusal(path)
    assert "holds a tuple whose item 1 is a state dict" in message
    exec(textwrap.dedent(message.partition("Save it:\n")[2]))
    assert read_checkpoint(tmp_path / "pair.state_dict.pt").tensors.keys() < weights.keys()
