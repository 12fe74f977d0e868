"""The depth study: that the two networks differ in their shortcuts alone, and that its figures are what they say."""

import csv
import importlib
import resource
import subprocess
import sys

import pytest
import torch
from PIL import Image

from tests.examples.conftest import EXAMPLES, Silent, command, invoke


@pytest.fixture(scope="module")
def depth_study():
    return importlib.import_module("depth_study")


@pytest.fixture(scope="module")
def study(depth_study):
    return depth_study.Study(steps=3, blocks_per_stage=2, width=2, side=8)


@pytest.fixture(scope="module")
def measurements(depth_study, study):
    return depth_study.measure(study, Silent())


def _network(kind: str, seed: int = 0):
    models = importlib.import_module("models")
    shortcut = importlib.import_module("depth_study").SHORTCUTS[kind]
    torch.manual_seed(seed)
    return models.with_he_weights(models.CifarResNet((2, 2, 2), 2, 10, shortcut))


def test_usual_study_has_50_layers(depth_study):
    assert depth_study.Study().layers == 50


def test_networks_have_the_same_weights_and_differ_in_their_answers():
    resnet, plain = _network("ResNet"), _network("plain")
    assert list(resnet.state_dict()) == list(plain.state_dict())
    assert all(torch.equal(resnet.state_dict()[name], tensor) for name, tensor in plain.state_dict().items())
    images = torch.randn(4, 3, 8, 8)
    assert not torch.allclose(resnet(images), plain(images))


def test_equal_studies_give_equal_measurements(depth_study, study, measurements):
    assert depth_study.measure(study, Silent()) == measurements
    from dataclasses import replace

    assert depth_study.measure(replace(study, seed=1), Silent()) != measurements


def test_gradient_norms_are_there_for_each_layer_before_and_after(study, measurements):
    for network in ("ResNet", "plain"):
        for steps in (0, 3):
            rows = [m for m in measurements if (m.network, m.measure, m.steps) == (network, "gradient_norm", steps)]
            assert [row.depth for row in rows] == list(range(1, study.layers + 1))
            assert (rows[0].layer, rows[1].layer, rows[-1].layer) == ("conv1", "layer1.0.conv1", "linear")
            assert all(row.value > 0 for row in rows)


def test_gradient_norm_is_the_slope_of_the_loss(depth_study, study, measurements):
    """Against a central difference: a step against the gradient changes the loss by its norm times the step."""
    data = importlib.import_module("data").load_digits(study.side)
    network = _network("plain").double().train()
    rows = torch.arange(study.gradient_rows)
    images = importlib.import_module("pixels").normalise(data.train_images[rows], data.mean, data.std).double()

    def loss():
        return torch.nn.functional.cross_entropy(network(images), data.train_classes[rows])

    weight = network.get_submodule("layer2.1.conv2").weight
    loss().backward()
    direction = weight.grad / weight.grad.norm()
    with torch.no_grad():
        weight += 1e-6 * direction
        above = loss()
        weight -= 2e-6 * direction
        below = loss()
    (measured,) = [
        m.value
        for m in measurements
        if (m.network, m.measure, m.steps, m.layer) == ("plain", "gradient_norm", 0, "layer2.1.conv2")
    ]
    assert measured == pytest.approx(float((above - below) / 2e-6), rel=1e-3)


def test_deletions_name_what_they_take_and_put_it_back():
    deletions_of = importlib.import_module("deletions").deletions_of
    resnet, plain = _network("ResNet").eval(), _network("plain").eval()
    images = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    assert [d.name for d in deletions_of(resnet)] == [f"layer{s}.{b}" for s in (1, 2, 3) for b in (0, 1)]
    plain_names = [d.name for d in deletions_of(plain)]
    assert len(plain_names) == 10, "12 layers in blocks, of which 2 change the shape"
    assert not {"layer2.0.conv1", "layer3.0.conv1", "conv1"} & set(plain_names)
    for network, layers in ((resnet, 2), (plain, 1)):
        with torch.inference_mode():
            before = network(images)
            for deletion in deletions_of(network):
                assert deletion.layers == layers
                with deletion.applied():
                    assert not torch.equal(network(images), before)
                assert torch.equal(network(images), before)


def test_a_deleted_block_leaves_its_shortcut():
    """The same network, written out by hand: a block whose last BatchNorm gives 0 is its shortcut."""
    deletions = importlib.import_module("deletions").deletions_of
    images = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    for position, name in enumerate(f"layer{s}.{b}" for s in (1, 2, 3) for b in (0, 1)):
        network, silenced = _network("ResNet").eval(), _network("ResNet").eval()
        last = silenced.get_submodule(f"{name}.bn2")
        with torch.inference_mode():
            last.weight.zero_()
            last.bias.zero_()
            with deletions(network)[position].applied():
                assert torch.equal(network(images), silenced(images))


def test_a_deleted_layer_is_passed_over():
    network, identity = _network("plain").eval(), _network("plain").eval()
    (deletion,) = [d for d in importlib.import_module("deletions").deletions_of(network) if d.name == "layer2.1.conv1"]
    block = identity.get_submodule("layer2.1")
    with torch.inference_mode():
        torch.nn.init.dirac_(block.conv1.weight)
        block.bn1.running_var.fill_(1 - block.bn1.eps)
        images = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
        with deletion.applied():
            torch.testing.assert_close(network(images), identity(images))


def test_accuracy_lost_is_that_of_the_whole_less_that_without(study, measurements):
    for network, deletions in (("ResNet", 6), ("plain", 10)):
        own = [m for m in measurements if m.network == network]
        (whole,) = [m.value for m in own if m.measure == "accuracy"]
        lost = [m.value for m in own if m.measure == "accuracy_lost"]
        assert len(lost) == deletions
        assert all(0 <= whole - each <= 1 for each in lost)
        assert {m.steps for m in own if m.measure != "gradient_norm"} == {3}


def test_csv_and_figure_hold_all_of_it(depth_study, study, measurements, tmp_path):
    depth_study.write_csv(measurements, tmp_path / "x.csv")
    with (tmp_path / "x.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(measurements)
    assert [float(row["value"]) for row in rows] == [m.value for m in measurements]
    assert {row["measure"] for row in rows} == {"gradient_norm", "accuracy", "accuracy_lost"}
    importlib.import_module("depth_plot").draw(measurements, study, tmp_path / "x.png")
    with Image.open(tmp_path / "x.png") as picture:
        assert picture.format == "PNG"
        assert picture.width > 1000
    lines = depth_study.summary(measurements, "ResNet")
    assert "gradient norm after 0 steps" in lines[0]
    assert "of 6 deletions" in lines[-1]


def test_loss_that_diverges_is_an_error(depth_study, study):
    from dataclasses import replace

    with pytest.raises(FloatingPointError, match="the loss of the ResNet network became"):
        depth_study.measure(replace(study, learning_rate=1e30, steps=10), Silent())


@pytest.mark.parametrize("arguments", [["--steps", "0", "-o", "x"], ["--seed", "-1", "-o", "x"], []])
def test_wrong_usage_exits_with_2(depth_study, arguments, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert invoke(command(depth_study.main), *arguments).exit_code == 2
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_whole_study_takes_under_3_minutes_and_shows_that_blocks_are_dispensable(tmp_path):
    # CPU time: on quiet cores the wall time is at most that, on busy ones it says nothing of the study.
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    words = [sys.executable, str(EXAMPLES / "depth_study.py"), "-o", str(tmp_path / "new" / "depth")]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=590)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "new" / "depth" / "depth_study.png").exists()
    with (tmp_path / "new" / "depth" / "depth_study.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    lost = {
        network: sorted(
            float(row["value"]) for row in rows if (row["network"], row["measure"]) == (network, "accuracy_lost")
        )
        for network in ("ResNet", "plain")
    }
    assert (len(lost["ResNet"]), len(lost["plain"])) == (24, 46)
    assert lost["ResNet"][12] < 0.10, "most single blocks cost the ResNet little"
    assert lost["plain"][23] > lost["ResNet"][12]
    assert cpu_s < 180
