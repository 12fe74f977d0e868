"""Objects of classes beside the weights are left inert: nothing of a file is imported, called or run."""

import argparse
import collections
import contextlib
import functools
import importlib
import io
import os
import pickle
import struct
import sys
import types
from pathlib import Path, PurePosixPath

import pytest
import torch

from fuseline.export.checkpoint.checkpoint import read_checkpoint
from fuseline.export.checkpoint.inert_objects import Name
from fuseline.export.checkpoint.inert_pickle import read_pickle
from fuseline.export.checkpoint.pickled_tensors import Storage, construct_tensor
from fuseline.serve.errors import CheckpointError
from tests.export.small_weights import assert_same, small_network, without_counters

FORMS = pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before-1.6"])


@pytest.fixture
def weights() -> dict[str, torch.Tensor]:
    return dict(small_network().state_dict())


class Call:
    """Unpickling it calls `function`."""

    def __init__(self, function, *arguments, state=None) -> None:
        self.parts = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self):
        return self.parts


@FORMS
@pytest.mark.parametrize(
    "hostile",
    [
        lambda marker: Call(os.system, f"touch {marker}"),
        lambda marker: Call(eval, f"open({str(marker)!r}, 'w')"),
        lambda marker: Call(exec, f"open({str(marker)!r}, 'w')"),
        lambda marker: Call(open, str(marker), "w"),
        lambda marker: Call(Path.touch, marker),
        lambda marker: Call(functools.partial, Path.touch, marker),
        lambda marker: Call(getattr, Call(importlib.import_module, "os"), "system"),
    ],
    ids=["os.system", "eval", "exec", "open", "Path.touch", "partial", "getattr"],
)
def test_never_runs_code_from_a_file(tmp_path, weights, zipped, hostile):
    path, marker = tmp_path / "model.pt", tmp_path / "code-was-run"
    torch.save({"state_dict": weights, "hook": hostile(marker)}, path, _use_new_zipfile_serialization=zipped)
    checkpoint = read_checkpoint(path)
    assert_same(checkpoint.tensors, without_counters(weights))
    assert not marker.exists()
    assert any("left inert" in note for note in checkpoint.notes)


def test_the_hostile_file_is_not_harmless(tmp_path, weights):
    path, marker = tmp_path / "model.pt", tmp_path / "code-was-run"
    torch.save({"state_dict": weights, "hook": Call(Path.touch, marker)}, path)
    read_checkpoint(path)
    assert not marker.exists()
    torch.load(path, weights_only=False)
    assert marker.exists(), "the file was harmless, so this test proved nothing"


@FORMS
def test_imports_no_module_that_a_file_names(tmp_path, monkeypatch, weights, zipped):
    """The module would create a file when it is imported."""
    marker = tmp_path / "was-imported"
    (tmp_path / "side_effect.py").write_text(f"open({str(marker)!r}, 'w').close()\nclass Thing:\n    pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    path = tmp_path / "model.pt"
    module = types.ModuleType("side_effect")
    module.Thing = type("Thing", (), {"__module__": "side_effect"})
    monkeypatch.setitem(sys.modules, "side_effect", module)
    torch.save({"state_dict": weights, "thing": module.Thing()}, path, _use_new_zipfile_serialization=zipped)
    monkeypatch.delitem(sys.modules, "side_effect")

    checkpoint = read_checkpoint(path)
    assert_same(checkpoint.tensors, without_counters(weights))
    assert not marker.exists()
    assert "side_effect" not in sys.modules
    assert "left inert, none of their code run: side_effect.Thing" in "\n".join(checkpoint.notes)
    torch.load(path, weights_only=False)
    assert marker.exists(), "the file was harmless, so this test proved nothing"
    sys.modules.pop("side_effect")


class AttributeDict(dict):
    """A dict with a class, as Lightning keeps hyper-parameters."""


class Listed(list):
    pass


class Slotted:
    __slots__ = ("a", "b")

    def __init__(self) -> None:
        self.a, self.b = 1, [2]


class WithKeywords:
    def __new__(cls, *, size):
        made = super().__new__(cls)
        made.size = size
        return made

    def __getnewargs_ex__(self):
        return (), {"size": self.size}


Pair = collections.namedtuple("Pair", "first second")

OBJECTS = {
    "namespace": argparse.Namespace(lr=0.1, nested=argparse.Namespace(x=[1, 2])),
    "partial": functools.partial(torch.optim.SGD, lr=0.1),
    "path": Path("/tmp/x"),
    "pure-path": PurePosixPath("a/b"),
    "dict-class": AttributeDict(a=1, b=AttributeDict()),
    "list-class": Listed([1, 2, Listed([3])]),
    "slots": Slotted(),
    "namedtuple": Pair(1, [2]),
    "counter": collections.Counter("hello"),
    "defaultdict": collections.defaultdict(list, {"a": [1]}),
    "deque": collections.deque([1, 2], maxlen=4),
    "sets": {"a": {1, 2}, "b": frozenset({3})},
    "bytes": [b"\x00\xff", b""],
    "bytearray": [bytearray(b"abc"), bytearray()],
    "numbers": [1.5, -3, 2**80, True, None, 1 + 2j],
    "class": AttributeDict,
    "function": torch.nn.functional.relu,
    "dtype": [torch.float16, torch.device("cpu"), torch.Size([1, 2])],
    "schedule": torch.optim.lr_scheduler.StepLR(torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1), 3),
    "exception": ValueError("x"),
}


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("name", OBJECTS)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_reads_the_weights_beside_any_object(tmp_path, weights, name, protocol):
    path = tmp_path / "model.pt"
    torch.save({"args": OBJECTS[name], "state_dict": weights, "more": OBJECTS[name]}, path, pickle_protocol=protocol)
    assert_same(read_checkpoint(path).tensors, without_counters(weights))


@pytest.mark.parametrize("protocol", [2, 4])
def test_objects_with_keywords_to_their_constructor(tmp_path, weights, protocol):
    path = tmp_path / "model.pt"
    torch.save({"args": WithKeywords(size=3), "state_dict": weights}, path, pickle_protocol=protocol)
    assert_same(read_checkpoint(path).tensors, without_counters(weights))


def test_an_old_protocol_is_read(tmp_path, weights):
    """Protocols below 2 rebuild objects by `copyreg._reconstructor`."""
    path = tmp_path / "model.pt"
    torch.save({"args": AttributeDict(a=1), "state_dict": weights}, path, pickle_protocol=1)
    assert_same(read_checkpoint(path).tensors, without_counters(weights))


def test_names_the_classes_that_were_left_inert_and_no_others(tmp_path, weights):
    path = tmp_path / "model.pt"
    torch.save({"args": argparse.Namespace(lr=0.1), "state_dict": weights, "seen": {1}, "where": Path("x")}, path)
    note = read_checkpoint(path).notes[-1]
    assert note.startswith(
        "objects beside the weights left inert, none of their code run: argparse.Namespace, pathlib."
    )
    assert "torch" not in note
    assert "set" not in note


def test_weights_in_an_object_are_found(tmp_path, weights):
    """A dict with a class around the checkpoint, or a trainer that was pickled whole."""
    path = tmp_path / "model.pt"
    for wrapped in (AttributeDict(state_dict=weights), argparse.Namespace(model=weights, epoch=3)):
        torch.save(wrapped, path)
        assert_same(read_checkpoint(path).tensors, without_counters(weights))


def test_a_training_checkpoint_of_torchvision_is_read(tmp_path):
    """What references/classification/train.py saves."""
    path = tmp_path / "checkpoint.pth"
    network = small_network()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    averaged = torch.optim.swa_utils.AveragedModel(network)
    torch.save(
        {
            "model": network.state_dict(),
            "optimizer": optimizer.state_dict(),
            "lr_scheduler": torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10).state_dict(),
            "epoch": 7,
            "args": argparse.Namespace(model="resnet18", lr=0.1, data_path="/data/imagenet", mixup_alpha=0.0),
            "model_ema": averaged.state_dict(),
        },
        path,
    )
    checkpoint = read_checkpoint(path)
    assert_same(checkpoint.tensors, without_counters(network.state_dict()))
    assert "--ema takes them" in checkpoint.notes[0]
    assert_same(read_checkpoint(path, prefer_ema=True).tensors, without_counters(network.state_dict()))


def test_a_damaged_pickle_raises_only_what_the_reader_promises():
    whole = pickle.dumps({"a": [1, Slotted()], "b": AttributeDict(x={1: (2, 3)}), "c": {4}}, protocol=2)
    for cut in range(len(whole)):
        with contextlib.suppress(ValueError, IndexError, KeyError, TypeError, AttributeError):
            read_pickle(io.BytesIO(whole[:cut] + whole[cut + 1 :]))


@pytest.mark.parametrize("padding", range(4))
def test_a_view_of_a_storage_before_1_6_begins_at_its_offset(tmp_path, padding):
    """The persistent id carries the view's key, offset and size; the storage lies at every remainder of 4."""
    head = [0x1950A86A20F9469CFC6C, 1001, {"protocol_version": 1001, "little_endian": True, "type_sizes": {}}]
    key = (
        b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x0a"
        b"(X\x02\x00\x00\x000vK\x04K\x04ttQ"
    )
    tensor = b"ctorch._utils\n_rebuild_tensor_v2\n(" + key + b"K\x00K\x04\x85K\x01\x85\x89}tR"
    filling = b"X\x03\x00\x00\x00pad" + b"X" + struct.pack("<I", padding) + b"z" * padding
    root = b"\x80\x02}(X\x08\x00\x00\x00a.weight" + tensor + filling + b"u."
    path = tmp_path / "model.pt"
    path.write_bytes(
        b"".join(pickle.dumps(part, 2) for part in head)
        + root
        + pickle.dumps(["0"], 2)
        + struct.pack("<q10f", 10, *range(10))
    )
    assert torch.load(path, weights_only=False)["a.weight"].tolist() == [4, 5, 6, 7]
    assert read_checkpoint(path).tensors["a.weight"].tolist() == [4, 5, 6, 7]


@pytest.mark.parametrize("padding", range(4))
def test_views_of_one_storage_before_1_6_share_one_copy(tmp_path, padding):
    path = tmp_path / "model.pt"
    flat = torch.arange(100.0)
    named = {f"layer{i}.weight": flat[i * 10 : i * 10 + 10] for i in range(10)}
    torch.save({"pad": "z" * padding, "state_dict": named}, path, _use_new_zipfile_serialization=False)
    found = read_checkpoint(path).tensors
    assert_same(found, named)
    assert len({tensor.untyped_storage().data_ptr() for tensor in found.values()}) == 1


def test_a_type_that_is_no_type_looks_nothing_up_in_torch(monkeypatch):
    """Looking it up there would import `torch._inductor`, `torch._dynamo` or `torch.onnx`."""
    looked_up: list[str] = []
    monkeypatch.setattr(torch, "__getattr__", looked_up.append)
    storage = Storage(torch.zeros(8, dtype=torch.uint8), None)
    with pytest.raises(TypeError, match="unknown type"):
        construct_tensor("torch._utils._rebuild_tensor_v3", (storage, 0, (2,), (1,), False, {}, Name("torch._absent")))
    assert looked_up == []


def test_types_without_a_storage_class_are_read(tmp_path):
    path = tmp_path / "model.pt"
    named = {str(d): torch.arange(4).to(d) for d in (torch.uint16, torch.uint32, torch.uint64)}
    torch.save(named | {"w": torch.arange(4.0).to(torch.float8_e5m2)}, path)
    found = read_checkpoint(path).tensors
    assert all(torch.equal(found[name], tensor) for name, tensor in named.items())
    assert found["w"].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    "content",
    [
        b"\x80\x04}" + b"K\x01" + b"2\x86" * 60 + b"K\x01s.",
        b"\x80\x04(" + b"K\x01" + b"2\x86" * 60 + b"\x91.",
        b"\x80\x04\x8f(" + b"K\x01" + b"2\x86" * 60 + b"\x90.",
        b"\x80\x04cbuiltins\nset\n]" + b"K\x01" + b"2\x86" * 60 + b"a\x85R.",
        b"\x80\x04cbuiltins\ndict\n](" + b"K\x01" + b"2\x86" * 60 + b"K\x01ta\x85R.",
    ],
    ids=["dict-key", "frozenset", "set", "called-set", "called-dict"],
)
def test_keys_that_take_forever_to_hash_are_refused(content):
    with pytest.raises(ValueError, match="key"):
        read_pickle(io.BytesIO(content))


def test_keys_of_numbers_that_all_hash_alike_are_refused():
    with pytest.raises(ValueError, match="key"):
        read_pickle(io.BytesIO(pickle.dumps({2**61 - 1 << 60: 1}, 2)))


@pytest.mark.parametrize("key", [("a", 1), (("a", 1.5), None, b"x"), -(2**63), True])
def test_ordinary_keys_are_read(key):
    assert read_pickle(io.BytesIO(pickle.dumps([{key: 1}, {key}, frozenset({key})], 4))).root == [
        {key: 1},
        {key},
        frozenset({key}),
    ]


def test_numbers_too_long_to_show_are_refused(tmp_path, weights):
    path = tmp_path / "model.pt"
    for content in ({10**5000: 1}, {"state_dict": weights | {10**5000: torch.ones(1)}}, {"epoch": 10**5000}):
        torch.save(content, path)
        with pytest.raises(CheckpointError, match="a number of 16610 bits"):
            read_checkpoint(path)


@pytest.mark.parametrize(
    "content",
    [
        b"\x80\x02](" + b"N" * 10_000 + b"e" + b"q\x00" + b"cbuiltins\nlist\nh\x00\x85R0" * 2_000 + b".",
        b"\x80\x02X"
        + struct.pack("<I", 100_000)
        + b"z" * 100_000
        + b"q\x00X\x06\x00\x00\x00latin1q\x01"
        + b"c_codecs\nencode\nh\x00h\x01\x86R0" * 10_000
        + b".",
        b"\x80\x02}("
        + b"".join(b"M" + struct.pack("<H", i) + b"N" for i in range(10_000))
        + b"uq\x00"
        + b"ca\nB\n)\x81"
        + b"h\x00b" * 2_000
        + b".",
        b"\x80\x04" + b"\x8f" * 400_000 + b".",
    ],
    ids=["list", "encode", "build", "sets"],
)
def test_small_pickles_that_copy_without_end_are_refused(content):
    with pytest.raises(ValueError, match="more work"):
        read_pickle(io.BytesIO(content))
