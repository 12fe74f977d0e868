import json
from pathlib import Path
from typing import Any

import pytest

from fuseline.benchmarks.harness.subject import Subject, open_subject
from fuseline.benchmarks.headline import measure
from fuseline.benchmarks.headline.measure import BackendRounds, HeadlineRun, rows_of, run_headline
from fuseline.benchmarks.headline.report import as_json, as_table, verdicts
from fuseline.benchmarks.serving.figures import ServingFigures
from fuseline.serve.errors import InputError


def served(images_per_s: float) -> ServingFigures:
    latency_ms = {"p50": 1.0, "p90": 2.0, "p99": 3.0, "max": 4.0}
    return ServingFigures(32, 1, images_per_s, images_per_s, latency_ms, 100, 1.0, 0.5, 0.1)


def rounds(backend: str, precision: str, bare: list[float], rates: list[float], **settings: Any) -> BackendRounds:
    settings = {"is_default": False} | settings
    return BackendRounds(
        backend, precision, bare_images_per_s=bare, served=[served(rate) for rate in rates], **settings
    )


def run(openvino_served: float = 39.2) -> HeadlineRun:
    return HeadlineRun(
        model="resnet18",
        backends=[
            rounds("onnxruntime", "fp32", [38.0, 19.0, 38.0], [37.0, 18.5, 37.0]),
            rounds("openvino", "fp32", [40.0, 20.0, 40.0], [openvino_served, 19.6, 39.2], is_default=True),
        ],
        eager_images_per_s=[22.0, 11.0, 22.0],
        eager_latency_ms=[50.0, 100.0, 50.0],
        trial_images_per_s={"eager-channels-last": 25.0, "compiled": 30.0},
        fastest_pytorch_images_per_s=[44.0, 22.0, 44.0],
        idle_cores=[0.0, 0.01],
    )


def told(found: HeadlineRun) -> list[tuple[str, float, float, bool]]:
    return [(v.what, round(v.ratio.median, 3), v.bar, v.passed) for v in verdicts(found)]


def test_every_backend_is_held_against_its_bare_self_and_the_default_against_eager() -> None:
    assert told(run()) == [
        ("served on ONNX Runtime FP32 / the bare backend at its best", 0.974, 0.97, True),
        ("served on OpenVINO FP32 / the bare backend at its best", 0.98, 0.97, True),
        ("served on OpenVINO FP32 / eager PyTorch FP32", 1.782, 1.7, True),
    ]


def test_the_bare_backend_counts_by_lanes_where_those_are_faster() -> None:
    in_lanes = rounds("openvino", "fp32", [40.0] * 3, [39.2] * 3, lanes=2, bare_lanes_images_per_s=[50.0, 49.0, 49.0])
    slower = rounds("openvino", "fp32", [40.0] * 3, [39.2] * 3, lanes=2, bare_lanes_images_per_s=[50.0, 30.0, 30.0])
    found = run()
    found.backends = [in_lanes, slower]
    assert [(ratio, passed) for _, ratio, _, passed in told(found)] == [(0.8, False), (0.98, True)]
    assert "bare OpenVINO FP32, 2 lanes" in [row["what"] for row in as_json(found)["summary"]]


def test_the_plain_server_is_a_row_beside_the_server_and_no_bar() -> None:
    found = run()
    found.backends[1].plain = [served(39.0), served(19.0), served(38.0)]
    summary = {row["what"]: row for row in as_json(found)["summary"]}
    assert summary["a plain server on OpenVINO FP32"]["ratio_to_bare"]["median"] == pytest.approx(0.95)
    assert "a plain server on ONNX Runtime FP32" not in summary
    assert len(verdicts(found)) == 3
    assert as_table(found).row_count == 7


def test_bf16_is_held_against_fp32_of_the_same_backend_and_int8_against_its_bare_self() -> None:
    found = run()
    found.backends += [
        rounds("openvino", "bf16", [80.0] * 3, [68.6, 33.3, 66.0]),
        rounds("openvino", "int8", [100.0, 50.0, 100.0], [91.0, 40.0, 92.0]),
    ]
    assert told(found)[3:] == [
        ("served on OpenVINO BF16 / served in FP32", 1.699, 1.7, False),
        ("served on OpenVINO INT8 / the bare backend at its best", 0.91, 0.9, True),
    ]


def test_ratios_are_to_eager_fp32_and_to_the_best_pytorch() -> None:
    found = run()
    assert found.fastest_pytorch == "compiled"
    summary = {row["what"]: row for row in as_json(found)["summary"]}
    assert summary["served on OpenVINO FP32"]["ratio_to_eager"]["median"] == pytest.approx(1.782, abs=1e-3)
    assert summary["served on OpenVINO FP32"]["ratio_to_best_pytorch"]["median"] == pytest.approx(0.891, abs=1e-3)
    assert summary["PyTorch FP32, torch.compile"]["ratio_to_best_pytorch"]["median"] == 1
    # What was fastest in the trial need not be so in the rounds.
    found.fastest_pytorch_images_per_s = [11.0, 5.0, 11.0]
    summary = {row["what"]: row for row in as_json(found)["summary"]}
    assert summary["eager PyTorch FP32"]["ratio_to_best_pytorch"]["median"] == 1


def test_one_bad_round_of_three_does_not_fail_and_two_do() -> None:
    one_bad = run(openvino_served=20.0)
    assert all(v.passed for v in verdicts(one_bad))
    one_bad.backends[1].served[1] = served(10.0)
    assert [v.passed for v in verdicts(one_bad)] == [True, False, False]


def test_the_table_says_pass_and_fail_and_the_json_has_every_round() -> None:
    found = run()
    assert as_table(found).row_count == 6
    assert str(as_table(found).caption).count("PASS") == 3
    found.backends[0].server_ready_s, found.backends[0].server_peak_mb = 1.84, 315.2
    assert "the server on ONNX Runtime FP32: ready in 1.8 s, at most 315 MB resident" in str(as_table(found).caption)
    found.backends[0].served = [served(1.0)] * 3
    found.idle_cores.append(0.5)
    caption = str(as_table(found).caption)
    assert "FAIL  served on ONNX Runtime" in caption
    assert "0.50 of a core" in caption
    written = json.loads(json.dumps(as_json(found)))
    assert written["rounds"]["eager_images_per_s"] == [22.0, 11.0, 22.0]
    assert written["rounds"]["trial_images_per_s"] == {"eager-channels-last": 25.0, "compiled": 30.0}
    assert written["fastest_pytorch"] == "compiled"
    assert [verdict["passed"] for verdict in written["verdicts"]] == [False, True, True]
    assert written["max_idle_cores"] == 0.5


def test_unasked_bf16_is_a_row_where_the_cpu_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    backends = ("onnxruntime", "openvino")
    monkeypatch.setattr(measure, "CONTENDERS", ("onnxruntime", "openvino", "openvino-bf16", "openvino-int8"))
    fp32 = [("onnxruntime", "fp32"), ("openvino", "fp32")]
    monkeypatch.setattr(measure, "_can_compute", lambda *_: False)
    assert rows_of(backends) == fp32
    monkeypatch.setattr(measure, "_can_compute", lambda *_: True)
    assert rows_of(backends) == [*fp32, ("openvino", "bf16")]
    assert rows_of(backends, ("fp32", "int8")) == [*fp32, ("openvino", "int8")]
    with pytest.raises(InputError, match="--precision fp16: none of onnxruntime, openvino computes in it"):
        rows_of(backends, ("fp32", "fp16"))


def test_a_package_without_its_checkpoint_has_no_eager(colours: Path) -> None:
    with pytest.raises(InputError, match="needs"):
        run_headline(Subject("colours", colours, None), rows=[("onnxruntime", "fp32")], rounds=1, seconds=0.1)


@pytest.mark.slow
def test_a_whole_run_measures_every_contender_in_every_round() -> None:
    rows = [("onnxruntime", "fp32"), ("openvino", "fp32"), ("onnxruntime", "int8")]
    with open_subject("resnet8", int8=True) as subject:
        found = run_headline(subject, rows=rows, rounds=2, seconds=0.2, threads=1)
    assert len(found.eager_images_per_s) == len(found.eager_latency_ms) == len(found.fastest_pytorch_images_per_s) == 2
    assert found.fastest_pytorch != "eager"
    assert {"eager-channels-last", "compiled", "compiled-channels-last"} <= set(found.trial_images_per_s)
    assert [(each.backend, each.precision) for each in found.backends] == rows
    for each in found.backends:
        assert len(each.served) == len(each.plain) == len(each.bare_images_per_s) == 2
    assert sum(each.is_default for each in found.backends) == 1
    in_lanes = sum(each.lanes is not None for each in found.backends)
    assert len(found.idle_cores) == 2 * (12 + in_lanes)
    assert len(verdicts(found)) == 4
