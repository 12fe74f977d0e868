"""`--rename FILE` and `inspect --rename-template`: names from the user, for every command that reads a checkpoint."""

import json
import time
from pathlib import Path

import pytest
import torch
from torch import nn

from fuseline.export.conversion import convert_checkpoint
from fuseline.export.loading.loading import NetworkSource, network_of, read_source, rename_template_of
from fuseline.export.loading.rename import read_renames
from fuseline.serve.errors import ArchitectureError, InputError
from fuseline.serve.model_package import load_package
from tests.commands import Run, only_error
from tests.export.recognition.equal_networks import assert_equal_logits
from tests.export.recognition.hand_written import ListedConvolutions, Named
from tests.export.resnets import tiny_network, trained_like
from tests.refusals import refusal_of

OWN_NAMES = {"stem": ("entry", "entrynorm"), "block": "s{stage}b{block}", "convs": ("p", "q"), "norms": ("pn", "qn")}


def saved(path: Path, network: nn.Module) -> Path:
    torch.save(trained_like(network).state_dict(), path)
    return path


def with_rules(path: Path, rules: object) -> Path:
    path.write_text(json.dumps(rules))
    return path


@pytest.fixture
def unnamed(tmp_path: Path) -> tuple[Path, nn.Module]:
    """A network whose names say nothing of its parts."""
    network = trained_like(Named((1, 2, 1), (8, 16, 32), shortcut=("side", "sidenorm"), **OWN_NAMES))
    return saved(tmp_path / "own.pt", network), network


def inspect(run_fuseline: Run, *arguments: object) -> str:
    code, stdout, stderr = run_fuseline("inspect", *arguments)
    assert code == 0, stderr
    return stdout


def test_the_refusals_advice_leads_to_a_package(
    unnamed: tuple[Path, nn.Module],
    tmp_path: Path,
    run_export: Run,
    run_fuseline: Run,
) -> None:
    path, network = unnamed
    message = only_error(run_export(path, "--out", tmp_path / "package"))
    assert "Its shapes and their order are those of a CIFAR ResNet of basic blocks 1-2-1" in message
    assert "`fuseline inspect CHECKPOINT --rename-template names.json`" in message
    assert "--rename names.json" in message
    names = tmp_path / "names.json"
    assert "0 of them without a name" in inspect(run_fuseline, path, "--rename-template", names)
    source = NetworkSource(path, rename=names)
    assert_equal_logits(network, network_of(read_source(source), source), side=32)
    done = run_export(path, "--rename", names, "--out", tmp_path / "package")
    assert done.exit_code == 0, done.stderr
    assert load_package(tmp_path / "package").manifest.architecture.startswith("CIFAR ResNet")
    assert "tensors renamed by --rename" in inspect(run_fuseline, path, "--rename", names)
    convert_checkpoint(source, to="cifar", out=tmp_path / "cifar.pt")
    again = NetworkSource(tmp_path / "cifar.pt")
    assert_equal_logits(network, network_of(read_source(again), again), side=32)


def test_the_template_is_printed_and_leaves_out_what_it_cannot_tell(tmp_path: Path, run_fuseline: Run) -> None:
    tensors = trained_like(Named((1, 1), (8, 16), shortcut=("side", "sidenorm"), **OWN_NAMES)).state_dict()
    torch.save(tensors | {"gain": torch.ones(3)}, tmp_path / "odd.pt")
    template = json.loads(inspect(run_fuseline, tmp_path / "odd.pt", "--rename-template", "-"))
    assert template["gain"] == ""
    assert template["entry.weight"] == "conv1.weight"
    assert template["s2b0.sidenorm.running_mean"] == "layer2.0.downsample.1.running_mean"
    assert template["fc.bias"] == "fc.bias"
    # What is left empty keeps its name, and the next refusal names it.
    source = NetworkSource(tmp_path / "odd.pt", rename=with_rules(tmp_path / "names.json", template))
    with pytest.raises(ArchitectureError, match="left over: gain"):
        network_of(read_source(source), source)


def test_the_template_of_a_recognised_network_is_that_network(tmp_path: Path) -> None:
    network = tiny_network()
    source = NetworkSource(saved(tmp_path / "net.pt", network))
    template = rename_template_of(source)
    assert template["layer2.0.shortcut.0.weight"] == "layer2.0.shortcut.0.weight"
    renamed = NetworkSource(tmp_path / "net.pt", rename=with_rules(tmp_path / "names.json", template))
    assert_equal_logits(network, network_of(read_source(renamed), renamed), side=32)


def test_sorted_names_are_taken_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    network = trained_like(Named((6, 6), (8, 16), block="s{flat}x", first=(0, 0, 0), shortcut=("side", "sidenorm")))
    tensors = network.state_dict()
    torch.save({name: tensors[name] for name in sorted(tensors)}, tmp_path / "sorted.pt")
    template = rename_template_of(NetworkSource(tmp_path / "sorted.pt"))
    assert template["s10x.conv2.weight"] == "layer2.4.conv2.weight"


def test_a_list_of_convolutions_is_a_resnet_only_where_the_user_says_so(tmp_path: Path) -> None:
    network = trained_like(ListedConvolutions(shortcuts=True))
    source = NetworkSource(saved(tmp_path / "list.pt", network))
    with pytest.raises(ArchitectureError, match="nothing tells whether shortcuts exist"):
        network_of(read_source(source), source)
    names = with_rules(tmp_path / "names.json", rename_template_of(source))
    told = NetworkSource(source.checkpoint, rename=names)
    assert_equal_logits(network, network_of(read_source(told), told), side=32)


def test_patterns_are_applied_in_their_order(unnamed: tuple[Path, nn.Module], tmp_path: Path) -> None:
    path, network = unnamed
    rules = {
        "^entry\\.": "conv1.",
        "^entrynorm": "bn1",
        r"^s(\d)b(\d)\.": r"layer\1.\2.",
        r"\.p\.": ".conv1.",
        r"\.q\.": ".conv2.",
        r"\.pn\.": ".bn1.",
        r"\.qn\.": ".bn2.",
        r"\.side\.": ".shortcut.0.",
        "sidenorm": "shortcut.1",
    }
    source = NetworkSource(path, rename=with_rules(tmp_path / "names.json", rules))
    checkpoint = read_source(source)
    assert "layer1.0.bn1.num_batches_tracked" in checkpoint.counters
    network_read = network_of(checkpoint, source)
    assert_equal_logits(network, network_read, side=32)


def test_whole_names_and_patterns_go_together_and_counters_follow(tmp_path: Path) -> None:
    network = tiny_network()
    tensors = {f"x{name}": tensor for name, tensor in network.state_dict().items()}
    tensors["xbn1.num_batches_tracked"] = torch.tensor(9)
    torch.save(tensors, tmp_path / "net.pt")
    rules = {f"xbn1.{leaf}": f"bn1.{leaf}" for leaf in ("weight", "bias", "running_mean", "running_var")} | {"^x": ""}
    source = NetworkSource(tmp_path / "net.pt", rename=with_rules(tmp_path / "names.json", rules))
    checkpoint = read_source(source)
    assert checkpoint.counters["bn1.num_batches_tracked"] == 9
    assert_equal_logits(network, network_of(checkpoint, source), side=32)


def test_layers_of_a_whole_module_take_their_settings_along(tmp_path: Path) -> None:
    network = tiny_network()
    network.bn1.eps = 0.002
    network.first = network._modules.pop("conv1")
    torch.save(network, tmp_path / "whole.pt")
    source = NetworkSource(tmp_path / "whole.pt", rename=with_rules(tmp_path / "n.json", {"^first": "conv1"}))
    checkpoint = read_source(source)
    assert checkpoint.layer_settings["conv1"]["type"].endswith("Conv2d")
    assert network_of(checkpoint, source).module.bn1.eps == 0.002


@pytest.mark.parametrize(
    ("rules", "said"),
    [
        ({"nowhere.weight": "conv1.weight"}, "matches none of the"),
        ({"^conv1": "stem", "^conv1.weight": "other"}, "as the rules before it left them"),
        ({"(conv": "x"}, "as a regular expression with its replacement it is wrong"),
        ({"conv": r"\9"}, "invalid group reference"),
        ({"conv": r"\g<none>"}, "unknown group name"),
        ({r"conv\d": "conv"}, "would both be called layer1.0.conv.weight"),
        ({"conv1.weight": "bn1.weight"}, "conv1.weight and bn1.weight would both be called bn1.weight"),
        ({"^.*$": ""}, "would have an empty name"),
        ({"conv1.weight": 3}, "a JSON object of texts was expected"),
        ({}, "a JSON object of texts was expected"),
        ([], "a JSON object of texts was expected"),
        ({str(number): "x" for number in range(1001)}, "is it the file of another checkpoint?"),
        ({"c" * 1001: "x"}, "more than 1000 characters"),
    ],
)
def test_wrong_rules_are_refused_with_the_rule(rules: object, said: str, tmp_path: Path) -> None:
    source = NetworkSource(
        saved(tmp_path / "net.pt", tiny_network()), rename=with_rules(tmp_path / "names.json", rules)
    )
    message = refusal_of(InputError, read_source, source)
    assert said in message
    assert f"--rename {tmp_path / 'names.json'}" in message


@pytest.mark.parametrize(
    ("text", "said"), [("{", "Expecting"), ('{"a": "b", "a": "c"}', "comes twice"), ("[" * 9999, "--rename")]
)
def test_what_is_no_json_is_refused(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "names.json").write_text(text)
    with pytest.raises(InputError, match=said):
        read_renames(tmp_path / "names.json")
    with pytest.raises(InputError, match="can't be read"):
        read_renames(tmp_path / "nowhere.json")


def test_a_pattern_that_backtracks_without_end_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fuseline.export.loading.rename._MAX_SECONDS", 1.0)
    source = NetworkSource(
        saved(tmp_path / "net.pt", tiny_network()),
        rename=with_rules(tmp_path / "names.json", {r"([a-z0-9]+[.]?)+([a-z_]+)*\.(\w+\w*)+!$": "x"}),
    )
    started = time.monotonic()
    with pytest.raises(InputError, match=r"took more than 1 s .* repetition within repetition"):
        read_source(source)
    assert time.monotonic() - started < 20


def test_names_cannot_grow_without_bound(tmp_path: Path) -> None:
    rules = {"^": "abcdefgh", **{f"{'(?:)' * n}(.*)": r"\1\1" for n in range(1, 40)}}
    source = NetworkSource(
        saved(tmp_path / "net.pt", tiny_network()), rename=with_rules(tmp_path / "names.json", rules)
    )
    with pytest.raises(InputError, match="more than 1000 characters"):
        read_source(source)


def test_a_package_has_no_names_to_change(unnamed: tuple[Path, nn.Module], tmp_path: Path, run_fuseline: Run) -> None:
    (tmp_path / "manifest.json").write_text("{}")
    assert "--rename-template" in run_fuseline("inspect", tmp_path, "--rename-template", "-").stderr
