"""`fuseline convert`: renaming between schemes, proven by running both."""

from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch
import torchvision

from fuseline.export import conversion
from fuseline.export.checkpoint.checkpoint import read_checkpoint
from fuseline.export.conversion import convert_checkpoint
from fuseline.export.loading.loading import NetworkSource
from fuseline.serve.errors import ArchitectureError, InputError, VerificationError
from tests.commands import Run
from tests.export.resnets import HandWrittenResNet34, option_a_resnet, trained_like


@pytest.fixture(scope="module")
def hand_written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ResNet-34 with `shortcut` and `fc`, that counted 7 batches."""
    path = tmp_path_factory.mktemp("convert") / "resnet34.pt"
    network = trained_like(HandWrittenResNet34(bias=False))
    for name, tensor in network.named_buffers():
        if name.endswith("num_batches_tracked"):
            tensor.fill_(7)
    torch.save({"state_dict": network.state_dict(), "labels": list("abcde")}, path)
    return path


def test_a_hand_written_resnet34_becomes_torchvisions_and_comes_back(hand_written: Path, tmp_path: Path) -> None:
    out, back = tmp_path / "out.safetensors", tmp_path / "back.pt"
    made = convert_checkpoint(NetworkSource(hand_written), to="torchvision", out=out)
    assert (made.from_naming, made.to_naming, made.renamed, made.tensors) == ("shortcut", "torchvision", 15, 182)
    assert ["bit for bit" in made.verified_against[0], "torchvision resnet34 itself" in made.verified_against[1]] == [
        True
    ] * 2

    theirs = torchvision.models.resnet34(num_classes=5)
    theirs.load_state_dict(safetensors.torch.load_file(out))
    assert theirs.layer2[0].downsample[1].num_batches_tracked == 7
    images = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(theirs.eval()(images), trained_like(reloaded(hand_written))(images))
    assert read_checkpoint(out).metadata["labels"] == list("abcde")

    returned = convert_checkpoint(NetworkSource(out), to="shortcut", out=back)
    assert "labels" in returned.left_out[0]
    before, after = torch.load(hand_written)["state_dict"], torch.load(back)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def reloaded(path: Path) -> torch.nn.Module:
    network = HandWrittenResNet34(bias=False)
    network.load_state_dict(torch.load(path)["state_dict"])
    return network


def test_timms_names_load_strictly_into_timms_network(hand_written: Path, tmp_path: Path) -> None:
    convert_checkpoint(NetworkSource(hand_written), to="timm", out=tmp_path / "timm.pth")
    theirs = timm.create_model("resnet34", num_classes=5)
    theirs.load_state_dict(torch.load(tmp_path / "timm.pth"))


def test_what_the_scheme_has_no_names_for_is_refused(tmp_path: Path) -> None:
    torch.save(trained_like(option_a_resnet(20)).state_dict(), tmp_path / "r20.pt")
    with pytest.raises(ArchitectureError, match="option A"):
        convert_checkpoint(NetworkSource(tmp_path / "r20.pt"), to="torchvision", out=tmp_path / "out.pt")
    with pytest.raises(ArchitectureError, match="no naming 'nowhere'.*torchvision"):
        convert_checkpoint(NetworkSource(tmp_path / "r20.pt"), to="nowhere", out=tmp_path / "out.pt")
    assert [path.name for path in tmp_path.iterdir()] == ["r20.pt"]


def test_a_wrong_destination_is_refused(hand_written: Path, tmp_path: Path) -> None:
    source = NetworkSource(hand_written)
    with pytest.raises(InputError, match="one of .safetensors, .pt, .pth"):
        convert_checkpoint(source, to="torchvision", out=tmp_path / "out.onnx")
    with pytest.raises(InputError, match="is the checkpoint itself"):
        convert_checkpoint(source, to="torchvision", out=hand_written, force=True)
    (tmp_path / "out.pt").write_text("precious")
    with pytest.raises(InputError, match="--force replaces it"):
        convert_checkpoint(source, to="torchvision", out=tmp_path / "out.pt")
    assert (tmp_path / "out.pt").read_text() == "precious"
    with pytest.raises(InputError, match="could not be written"):
        convert_checkpoint(source, to="torchvision", out=tmp_path / "out.pt" / "deeper.pt", force=True)


def test_other_logits_leave_nothing_behind(hand_written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A renaming that goes wrong: two tensors of one shape are swapped."""
    right = conversion.tensors_in

    def swapped(*arguments: object) -> dict[str, torch.Tensor]:
        tensors = right(*arguments)
        one, other = "layer1.0.conv1.weight", "layer1.0.conv2.weight"
        return tensors | {one: tensors[other], other: tensors[one]}

    monkeypatch.setattr(conversion, "tensors_in", swapped)
    with pytest.raises(VerificationError, match="other logits"):
        convert_checkpoint(NetworkSource(hand_written), to="torchvision", out=tmp_path / "out.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_the_command_says_what_it_did(hand_written: Path, tmp_path: Path, run_fuseline: Run) -> None:
    out = tmp_path / "out.safetensors"
    code, shown, _ = run_fuseline("convert", hand_written, "--to", "torchvision", "-o", out)
    assert code == 0
    assert "15 of 182 tensors renamed from shortcut to torchvision" in shown
    assert "torchvision resnet34 itself" in shown


def test_what_was_assumed_holds_for_both_files(tmp_path: Path) -> None:
    torch.save(trained_like(option_a_resnet(20)).state_dict(), tmp_path / "a.pt")
    source = NetworkSource(tmp_path / "a.pt", assumed={"shortcut": "zeros-after"})
    made = convert_checkpoint(source, to="shortcut", out=tmp_path / "b.pt")
    assert "bit for bit" in made.verified_against[0]
    with pytest.raises(InputError, match="nothing of this network is called shortcuts"):
        convert_checkpoint(
            NetworkSource(tmp_path / "a.pt", assumed={"shortcuts": "none"}), to="shortcut", out=tmp_path / "c.pt"
        )
