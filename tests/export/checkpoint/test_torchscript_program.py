"""A TorchScript file's program is read as text within bounds, and never run."""

import random
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional as F

from fuseline.export.checkpoint import script_code, script_operators
from fuseline.export.checkpoint.checkpoint import Checkpoint, read_checkpoint
from fuseline.export.program import Result, Weight
from fuseline.serve.errors import CheckpointError
from tests.export.small_weights import assert_same, without_counters


class Net(nn.Module):
    """Branches on training, an in-place ReLU whose result is left unused, slices, and a size of the pictures."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, stride=2, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(4, eps=1e-3)
        self.relu = nn.ReLU(inplace=True)
        self.drop = nn.Dropout(0.3)
        self.drop_maps = nn.Dropout2d(0.3)
        self.fc = nn.Linear(4, 2)

    def forward(self, x):
        x = self.drop_maps(self.norm(self.conv(x)))
        self.relu(x)
        x = x[:, :, ::2]
        x = F.avg_pool2d(x, x.size(2), 1)
        return self.fc(self.drop(x.mean(dim=[2, 3])))


def script(network: nn.Module, path: Path) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(network).save(str(path))
    return path


def rewritten(path: Path, change: Callable[[str, bytes], bytes]) -> Path:
    """The archive at `path` with every part as `change` gives it, stored as torch stores it."""
    changed = path.with_name("changed.pt")
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(changed, "w") as target:
        for entry in source.infolist():
            target.writestr(entry.filename, change(entry.filename, source.read(entry.filename)), entry.compress_type)
    return changed


def with_code(path: Path, code: bytes) -> Path:
    """The archive with `code` in place of its network's own class."""
    return rewritten(path, lambda name, content: code if b"class Net(Module)" in content else content)


def with_forward(path: Path, body: str) -> Path:
    lines = "".join(f"    {line}\n" for line in body.splitlines())
    return with_code(path, f"class Net(Module):\n  def forward(self: Net, x: Tensor) -> Tensor:\n{lines}".encode())


@pytest.fixture
def path(tmp_path) -> Path:
    return script(Net(), tmp_path / "model.pt")


def test_calls_come_in_their_order_with_their_constants(path):
    program = read_checkpoint(path).program
    assert program is not None
    assert [call.operator for call in program.calls] == [
        *("conv2d", "batch_norm", "relu", "slice", "slice", "slice", "avg_pool2d", "mean", "linear")
    ]
    conv, norm, relu, sliced = program.calls[:4]
    assert conv.arguments[1:] == (Weight("conv.weight", (4, 3, 3, 3)), None, (2, 2), (1, 1), (1, 1))
    assert norm.arguments[-4:] == (False, 0.1, 1e-3, True)
    # What works in place changes the variable, though its result has no name.
    assert sliced.arguments[0] == Result(2)
    assert (conv.layer, norm.layer, relu.layer) == ("conv", "norm", "relu")


@pytest.mark.parametrize("training", [True, False])
def test_training_is_off_whatever_the_file_was_saved_in(tmp_path, training):
    program = read_checkpoint(script(Net().train(training), tmp_path / "model.pt")).program
    assert program is not None
    assert program.calls[1].arguments[5] is False


def test_wrappers_prefixes_are_taken_from_its_names_too(tmp_path):
    wrapped = nn.Sequential()
    wrapped.add_module("model", torchvision.models.ResNet(torchvision.models.resnet.BasicBlock, [1, 1, 1, 1], 3))
    checkpoint = read_checkpoint(script(wrapped, tmp_path / "model.pt"))
    assert checkpoint.program is not None
    names = {
        argument.name
        for call in checkpoint.program.calls
        for argument in call.arguments
        if isinstance(argument, Weight)
    }
    assert names == checkpoint.tensors.keys()


def refused_to_read(checkpoint: Checkpoint) -> str:
    """The note that says why the program couldn't be read; the tensors are read all the same."""
    assert checkpoint.program is None
    assert checkpoint.layer_settings == {}
    assert_same(checkpoint.tensors, without_counters(Net().state_dict()) | checkpoint.tensors)
    notes = [note for note in checkpoint.notes if "couldn't be read to its end" in note]
    assert len(notes) == 1
    return notes[0]


DEEP = {
    "signs": "return " + "-" * 15_000 + "1",
    "dots": "return x" + ".a" * 9_000,
    "calls": "return x" + "()" * 9_000,
    "sums": "return " + "1+" * 9_000 + "1",
    "brackets": "return " + "(" * 9_000 + ")" * 9_000,
    "ifs": "if x:\n  pass\n" + "elif x:\n  pass\n" * 30_000,
}


@pytest.mark.parametrize("case", DEEP)
def test_deep_nesting_ends(path, case):
    assert refused_to_read(read_checkpoint(with_forward(path, DEEP[case])))


BODIES = {
    "branch": (
        "if bool(torch.gt(torch.sum(x), 0)):\n  y = x\nelse:\n  y = torch.neg(x)\nreturn y",
        "branches on values",
    ),
    "endless": ("while True:\n  pass\nreturn x", "While"),
    "loop": ("for i in range(100000000):\n  y = x\nreturn x", "steps to read"),
    "loop-over-pictures": ("for i in range(torch.size(x, 0)):\n  y = x\nreturn x", "loops as often"),
    "copies": ("a = [x, x]\n" + "a = [a, a, a, a]\n" * 40 + "return torch.cat(a)", "steps to read"),
    "numbers": ("n = 9\n" + "n = torch.mul(n, n)\n" * 200 + "return torch.add(x, n)\n", None),
    "texts": ("n = 'a'\n" + "n = torch.mul(n, 99999999)\n" * 9 + "return torch.add(x, n)", None),
    "itself": ("return (self).forward(x, )", "nest beyond"),
    "import": ("import os\nreturn x", "Import"),
    "lambda": ("return (lambda: x)()", "Lambda"),
    "store": ("self.fc = x\nreturn x", "Assign"),
    "view": ("y = torch.slice(x, 2, None, None, 2)\nz = torch.relu_(y)\nreturn x", "writes into a part"),
    "viewed": ("y = torch.slice(x, 2, None, None, 2)\nz = torch.relu_(x)\nreturn y", "writes into a part"),
    "list": ("a = [x]\nb = torch.clear(a)\nreturn x", "changes a list"),
    "absent-method": ("return (self.fc).nothing(x, )", "has no code of its method nothing"),
    "absent-attribute": ("return (self.nothing).forward(x, )", "has no attribute nothing"),
    "absent-function": ("return __torch__.nothing(x, )", "has no code"),
    "number": ("return 3", "returns a int"),
    "none": ("pass", "returns a NoneType"),
    "division": ("return torch.add(x, torch.div(1, 0))", "contradicts itself"),
    "absent-constant": ("return torch.add(x, CONSTANTS.c7)", "contradicts itself"),
    "random": ("return torch.dropout(x, 0.5, True)", "traced in training"),
}


@pytest.mark.parametrize("case", BODIES)
def test_code_that_no_writer_of_torch_makes_ends_with_a_reason(path, case):
    body, said = BODIES[case]
    checkpoint = read_checkpoint(with_forward(path, body))
    if said is None:
        assert checkpoint.program is not None
    else:
        assert said in refused_to_read(checkpoint)


def test_code_that_cannot_be_parsed_is_said(path):
    assert "SyntaxError" in refused_to_read(read_checkpoint(with_code(path, b"class Net(Module):\n  def forward(")))
    assert "can't be parsed" in refused_to_read(read_checkpoint(with_code(path, b"class Net(Module):\n\x00\xff")))
    assert "has no code" in refused_to_read(read_checkpoint(with_code(path, b"class Other(Module):\n  pass\n")))


def test_huge_code_is_not_parsed(path, monkeypatch):
    monkeypatch.setattr(script_code, "_MAX_FILE_BYTES", 1000)
    assert "more code than is read" in refused_to_read(read_checkpoint(with_code(path, b"#" * 2000)))
    monkeypatch.setattr(script_code, "_MAX_LINE_BYTES", 100)
    assert "longer than 100 bytes" in refused_to_read(read_checkpoint(with_code(path, b"#" * 200)))


def test_the_number_of_calls_is_bounded(path, monkeypatch):
    monkeypatch.setattr(script_operators, "_MAX_CALLS", 5)
    assert "more than 5 operators" in refused_to_read(read_checkpoint(path))


def test_an_archive_that_lies_about_the_size_of_its_code_is_no_bomb(path):
    bomb = with_code(path, b"#" * 10**6)
    data = bomb.read_bytes()
    with zipfile.ZipFile(bomb) as archive:
        entry = next(entry for entry in archive.infolist() if entry.file_size == 10**6)
    assert data.count((10**6).to_bytes(4, "little")) == 2
    bomb.write_bytes(data.replace((10**6).to_bytes(4, "little"), (50).to_bytes(4, "little")))
    assert entry.filename in (note := refused_to_read(read_checkpoint(bomb)))
    assert "should have 50 bytes" in note


def test_code_that_is_cut_short_or_damaged_never_raises_anything_else(path):
    rng = random.Random(7)

    def cut(name: str, content: bytes) -> bytes:
        return content[: rng.randrange(len(content))] if name.endswith(".py") and rng.random() < 0.5 else content

    def damaged(name: str, content: bytes) -> bytes:
        found = bytearray(content)
        for _ in range(3 if name.endswith(".py") and content else 0):
            found[rng.randrange(len(found))] = rng.randrange(32, 127)
        return bytes(found)

    for change in (cut, damaged):
        for _ in range(60):
            try:
                checkpoint = read_checkpoint(rewritten(path, change))
            except CheckpointError:
                continue
            assert checkpoint.program is not None or refused_to_read(checkpoint)


def test_nothing_in_it_is_run(path, tmp_path):
    target = tmp_path / "made"
    body = f"y = open({str(target)!r}, 'w')\nz = __import__('os').system('touch {target}')\nreturn x"
    read_checkpoint(with_forward(path, body))
    assert not target.exists()


class Normalised(nn.Module):
    """Normalises as `how` says, in 0..1 or 0..255."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.model = Net()
        self.how = how
        self.register_buffer("mean", torch.tensor([0.5, 0.25, 0.75]).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor([0.5, 0.25, 0.2]).view(1, 3, 1, 1))

    def forward(self, x):
        if self.how == "plain":
            return self.model((x - self.mean) / self.std)
        if self.how == "in place":
            return self.model(x.clone().sub_(self.mean).div_(self.std))
        if self.how == "bytes":
            return self.model((x / 255 - self.mean) / self.std)
        return self.model(x * 2 - 1)


@pytest.mark.parametrize(
    ("how", "mean", "std"),
    [
        *((how, [0.5, 0.25, 0.75], [0.5, 0.25, 0.2]) for how in ("plain", "in place", "bytes")),
        ("doubled", [0.5] * 3, [0.5] * 3),
    ],
)
@pytest.mark.parametrize("saving", ["script", "trace"])
def test_a_normalisation_in_the_program_is_taken(tmp_path, how, mean, std, saving):
    path = tmp_path / "model.pt"
    if saving == "script":
        script(Normalised(how), path)
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.jit.trace(Normalised(how).eval(), torch.zeros(1, 3, 32, 32)).save(str(path))
    checkpoint = read_checkpoint(path)
    assert checkpoint.metadata["mean"] == pytest.approx(mean)
    assert checkpoint.metadata["std"] == pytest.approx(std)
    assert checkpoint.program is not None
    assert any("normalises the pictures itself" in note for note in checkpoint.notes)


def test_torchvisions_normalisation_is_taken(tmp_path):
    normalise = torchvision.transforms.Normalize([0.5, 0.25, 0.75], [0.5, 0.25, 0.2])
    checkpoint = read_checkpoint(script(nn.Sequential(normalise, Net()), tmp_path / "model.pt"))
    assert checkpoint.metadata["mean"] == pytest.approx([0.5, 0.25, 0.75])
    assert checkpoint.metadata["std"] == pytest.approx([0.5, 0.25, 0.2])
