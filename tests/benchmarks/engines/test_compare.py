import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from rich.console import Console

from fuseline.benchmarks.engines import contenders, process
from fuseline.benchmarks.engines.compare import EngineComparison, EngineFigures, as_json, as_table, compare_engines
from fuseline.benchmarks.engines.contenders import BF16_CONTENDERS, INT8_CONTENDERS, Engine, open_engine
from fuseline.benchmarks.engines.process import EngineProcess
from fuseline.benchmarks.harness.answers import check_logits
from fuseline.benchmarks.harness.pictures import generated_pictures
from fuseline.benchmarks.harness.subject import Subject, open_subject
from fuseline.serve.errors import BackendError, BackendUnavailableError, InputError, VerificationError
from fuseline.serve.process.cpu import Cpu
from tests.bf16 import CPU_HAS_BF16, needs_bf16
from tests.fakes.colours import expected_logits, noise


@pytest.fixture
def subject(colours: Path) -> Subject:
    return Subject("colours", colours, None)


@pytest.fixture(scope="module")
def small() -> Iterator[Subject]:
    """A ResNet-8 with random weights, and its package."""
    with open_subject("resnet8", int8=True) as opened:
        yield opened


def test_an_engine_in_its_own_process_answers_and_is_timed(subject: Subject) -> None:
    with EngineProcess("auto", subject, threads=1) as engine:
        assert engine.name in {"onnxruntime", "openvino"}
        assert engine.logits(noise(3)) == pytest.approx(expected_logits(noise(3)), abs=1e-4)
        stretch = engine.measure(noise(3), 0.05)
        assert stretch.rows == 3
        assert 0.02 < sum(stretch.call_s) < 5
        assert stretch.images_per_s == pytest.approx(3 * len(stretch.call_s) / sum(stretch.call_s))
        assert 10 < (engine.peak_memory_mb() or 0) < 2000


def test_a_failing_call_is_told_and_the_engine_goes_on(subject: Subject) -> None:
    with EngineProcess("onnxruntime", subject) as engine:
        with pytest.raises(BackendError, match="ONNX Runtime failed"):
            engine.logits(np.zeros((1, 5, 5, 3), np.uint8))
        assert engine.logits(noise(1)).shape == (1, 4)


def test_a_process_that_dies_is_told(subject: Subject) -> None:
    with EngineProcess("onnxruntime", subject) as engine:
        os.kill(engine.pid, signal.SIGKILL)
        with pytest.raises(BackendError, match=r"onnxruntime: its process (died by SIGKILL|is gone)"):
            engine.logits(noise(1))


def test_pytorch_needs_a_checkpoint(subject: Subject) -> None:
    with pytest.raises(BackendUnavailableError, match="--checkpoint"), EngineProcess("eager", subject):
        pytest.fail("it started")


def test_engines_take_turns_and_are_compared_pair_by_pair(subject: Subject) -> None:
    said: list[str] = []
    found = compare_engines(subject, (1, 4), repeats=2, seconds=0.02, threads=1, say=said.append)

    assert found.baseline == "onnxruntime"
    assert {"eager", "folded", "tensorrt"} <= found.skipped.keys()
    first, second = (
        [line.partition(": ")[2] for line in said if line.startswith(f"repeat {repeat} of 2, batch 1")]
        for repeat in (1, 2)
    )
    expected = ["ONNX Runtime", "OpenVINO", *(["OpenVINO BF16"] if CPU_HAS_BF16 else [])]
    assert first == second[::-1] == expected
    ort, openvino, *_ = (figures for figures in found.figures if figures.batch == 4)
    assert ort.ratios == (1.0, 1.0)
    assert openvino.ratios == tuple(b / a for a, b in zip(ort.images_per_s, openvino.images_per_s, strict=True))
    assert as_table(found, "colours").row_count == 2 * len(expected)
    assert all(figures.first_answer_s > figures.start_s > 0 for figures in found.figures)
    assert as_json(found)["engines"][0]["images_per_s_spread"]["repeats"] == 2


def test_the_best_pytorch_is_found_at_each_batch_size_and_ratios_are_to_it() -> None:
    def figures(name: str, batch: int, *rates: float) -> EngineFigures:
        return EngineFigures(name, "fp32", batch, rates, (1.0,) * 3, (1.0,) * 3, 0.1, 0.2, 100.0)

    comparison = EngineComparison(
        "eager",
        (
            figures("eager", 1, 20, 30, 20),
            figures("compiled", 1, 10, 10, 10),
            figures("openvino", 1, 60, 30, 60),
            figures("eager", 8, 40, 40, 40),
            figures("compiled", 8, 80, 40, 80),
            # Folding is Fuseline's own.
            figures("folded", 8, 100, 100, 100),
        ),
        {},
    )
    written = as_json(comparison)
    assert written["best_pytorch"] == {1: "eager", 8: "compiled"}
    medians = [row["ratio_to_best_pytorch_spread"]["median"] for row in written["engines"]]
    assert medians == [1, 0.5, 3, 0.5, 1, 1.25]

    console = Console(width=200)
    with console.capture() as capture:
        console.print(as_table(comparison, "net"))
    best = [line for line in capture.get().splitlines() if "it is the best" in line]
    assert ["eager PyTorch FP32" in best[0], "torch.compile" in best[1], len(best)] == [True, True, 2]


def test_without_pytorch_there_is_no_best(subject: Subject) -> None:
    found = compare_engines(subject, (1,), repeats=1, seconds=0.02, threads=1, contenders=("onnxruntime",))
    assert as_json(found)["best_pytorch"] == {}
    assert as_json(found)["engines"][0]["ratio_to_best_pytorch_spread"] is None
    assert as_table(found, "colours").row_count == 1


def test_bf16_is_left_out_where_the_cpu_has_no_units_for_it(small: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contenders, "this_cpu", lambda: Cpu("old", 2, ("avx2", "avx512f")))
    with pytest.raises(BackendUnavailableError, match="no BF16 units"):
        open_engine("eager-bf16", small)


def with_lanes(name: str, subject: Subject, threads: int) -> Engine:
    """The engine `name` whose lanes are the engine itself; runs in a process of its own."""
    engine = open_engine(name, subject, threads)
    return replace(engine, open_lanes=lambda count: (lambda pixels: engine.prepare(pixels)(),) * count)


def test_lanes_are_called_side_by_side_and_their_rates_add_up(
    subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "open_engine", with_lanes)
    answer = process.start_engine("onnxruntime", subject, 1)
    assert answer("open", ())[-1] is True
    one = answer("measure", (noise(3), 0.05, None))
    both = answer("measure", (noise(3), 0.05, 2))
    assert 0.02 < sum(one) < 5
    # Two threads of 0.05 s.
    assert 0.09 < sum(both) < 10
    assert process.Stretch(3, (0.5, 0.5), lanes=2).images_per_s == pytest.approx(12)


def test_a_lane_that_answers_wrongly_is_not_timed(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = open_engine("onnxruntime", subject, 1)
    wrong = replace(engine, open_lanes=lambda count: (lambda pixels: expected_logits(pixels)[::-1],) * count)
    monkeypatch.setattr(process, "open_engine", lambda *_: wrong)
    monkeypatch.setattr(process, "timed_calls_side_by_side", lambda *_, **__: pytest.fail("it was timed"))
    answer = process.start_engine("onnxruntime", subject, 1)
    answer("open", ())
    assert isinstance(answer("measure", (noise(3), 0.05, 2)), VerificationError)


def test_an_engine_tells_whether_it_has_lanes(small: Subject) -> None:
    assert open_engine("eager", small).open_lanes is None


def test_an_engine_that_answers_wrongly_is_not_timed(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    right = EngineProcess.logits

    def logits(engine: EngineProcess, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        return right(engine, pixels) + np.float32(engine.name == "openvino")

    monkeypatch.setattr(EngineProcess, "logits", logits)
    monkeypatch.setattr(EngineProcess, "measure", lambda *_: pytest.fail("it was timed"))
    with pytest.raises(VerificationError, match="openvino at batch 2 gives other answers"):
        compare_engines(subject, (2,), repeats=1, seconds=0.02, contenders=("onnxruntime", "openvino"))


@pytest.mark.parametrize(
    "name",
    [
        "eager-channels-last",
        "eager-bf16",
        "folded",
        pytest.param("compiled", marks=pytest.mark.slow),
        pytest.param("compiled-channels-last", marks=pytest.mark.slow),
        pytest.param("compiled-bf16", marks=pytest.mark.slow),
        "onnxruntime",
        "openvino",
        *INT8_CONTENDERS,
        *(pytest.param(name, marks=needs_bf16) for name in BF16_CONTENDERS),
    ],
)
def test_the_answers_of_all_engines_are_eagers(small: Subject, name: str) -> None:
    pixels = generated_pictures((32, 32, 3), 4)
    eager = open_engine("eager", small).prepare(pixels)()
    try:
        engine = open_engine(name, small)
    except BackendUnavailableError as error:
        assert name.endswith("-bf16")
        pytest.skip(str(error))
    assert engine.name == name
    told = name.rpartition("-")[2]
    assert engine.precision == (told if told in ("int8", "bf16") else "fp32")
    check_logits(name, engine.precision, engine.prepare(pixels)(), eager)
    spread = float(np.ptp(eager))
    # A network that gave every picture the same answer would hide swapped ones.
    assert np.abs(eager[0] - eager[1]).max() > 0.01 * spread


def test_the_random_networks_batchnorms_do_something(small: Subject) -> None:
    import torch

    assert small.checkpoint is not None
    tensors = torch.load(small.checkpoint, weights_only=True)
    for name, tensor in tensors.items():
        if name.endswith(("running_mean", "bn1.bias")):
            assert tensor.abs().max() > 1e-3, name
        if name.endswith(("running_var", "bn1.weight")):
            assert (tensor - 1).abs().max() > 1e-3, name


def test_eager_is_torchvisions_own_network_where_it_is_one() -> None:
    import torch
    import torchvision

    from fuseline.benchmarks.engines.contenders import as_its_author_wrote_it
    from fuseline.export.recognition.architectures import recognise

    original = torchvision.models.resnet18(num_classes=7).eval()
    module = as_its_author_wrote_it(recognise(original.state_dict()))
    images = torch.rand(2, 3, 64, 64)
    assert type(module) is type(original)
    with torch.inference_mode():
        assert torch.equal(module(images), original(images))


def test_a_package_is_its_own_subject(colours: Path) -> None:
    with open_subject(str(colours)) as opened:
        assert opened.checkpoint is None
        assert opened.package.manifest.name == "colours"


@pytest.mark.parametrize(
    ("model", "checkpoint"), [("resnet19", None), ("nothing.pt", None), ("resnet18", Path("x.pt"))]
)
def test_what_is_no_subject(model: str, checkpoint: Path | None) -> None:
    with pytest.raises(InputError, match=r"neither a model package|none; give one"), open_subject(model, checkpoint):
        pytest.fail("it was opened")
