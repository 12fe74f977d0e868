"""`export` and its kin as a user runs them on code and files of their own: sizes, heads, and which network is meant."""

import json
import sys
from pathlib import Path

import pytest
import torch

from fuseline.export.commands.convert_command import convert
from fuseline.export.commands.inspect_command import inspect
from tests.commands import Run, only_error
from tests.export.resnets import CifarBasic, CifarResNet, trained_like

SOURCE = """
import torch
from torch import nn
from torch.nn import functional as F


class Flattens(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.bn, self.second = nn.Conv2d(3, 4, 5), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 5)
        self.linear = nn.Linear(100, 10)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.bn(self.first(x))), 2)
        x = F.max_pool2d(F.relu(self.second(x)), 2)
        return self.linear(x.view(x.size(0), -1))


class Pools(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.linear = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(4, 3)

    def forward(self, x):
        return self.linear(F.adaptive_avg_pool2d(F.relu(self.conv(x)), 1).flatten(1))
"""


@pytest.fixture
def users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The user's own code, in the folder where they stand."""
    (tmp_path / "users_code_on_disk.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    import users_code_on_disk

    yield users_code_on_disk
    sys.modules.pop("users_code_on_disk")


def test_a_network_that_flattens_by_a_view_is_exported_at_its_own_size(users, run_export: Run) -> None:
    torch.manual_seed(0)
    torch.save(users.Flattens().state_dict(), "flattens.pt")
    result = run_export("flattens.pt", "--factory", "users_code_on_disk:Flattens")
    assert result.exit_code == 0, result.stderr
    size = json.loads(Path("flattens/manifest.json").read_text())["input"]
    assert (size["height"], size["width"]) == (32, 32)


def test_a_size_that_nothing_tells_is_asked_for(users, run_export: Run) -> None:
    torch.save(users.Pools().state_dict(), "pools.pt")
    message = only_error(run_export("pools.pt", "--factory", "users_code_on_disk:Pools"))
    assert "--input-size 32 (28, 64, 224 or whatever it was)" in message
    assert not Path("pools").exists()
    assert run_export("pools.pt", "--factory", "users_code_on_disk:Pools", "--input-size", "28").exit_code == 0


def test_take_and_head_reach_every_command(tmp_path: Path, run_export: Run, capfd) -> None:
    torch.manual_seed(0)
    student = trained_like(CifarResNet(CifarBasic, (1, 1, 1, 1), [4, 8, 16, 32], classes=7)).state_dict()
    student |= {"other.weight": torch.ones(3, 32), "other.bias": torch.ones(3)}
    teacher = trained_like(CifarResNet(CifarBasic, (1, 1, 1, 1), [4, 8, 16, 32], classes=5)).state_dict()
    file = tmp_path / "pair.pt"
    torch.save({"student": student, "teacher": teacher}, file)
    torch.save({"a.weight": torch.zeros(2, 32), "b.weight": torch.zeros(4, 32)}, tmp_path / "heads.pt")
    torch.save({name: value for name, value in teacher.items() if "linear" not in name}, tmp_path / "backbone.pt")

    def classes(*arguments: object) -> int:
        result = run_export(*arguments, "--out", tmp_path / "out", "--force", "--input-size", "32")
        assert result.exit_code == 0, result.stderr
        return len(json.loads((tmp_path / "out" / "manifest.json").read_text())["labels"])

    assert classes(file, "--take", "teacher") == 5
    assert classes(file, "--head", "other") == 3
    assert classes(tmp_path / "backbone.pt", "--head-from", tmp_path / "heads.pt", "--head", "b") == 4
    inspect(file, take="teacher", as_json=True)
    assert json.loads(capfd.readouterr().out)["classes"] == 5
    inspect(file, head="other", as_json=True)
    assert json.loads(capfd.readouterr().out)["classes"] == 3
    convert(file, to="shortcut", out=tmp_path / "renamed.safetensors", take="teacher")
    assert "renamed from" in capfd.readouterr().out
