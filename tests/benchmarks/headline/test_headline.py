import json
from pathlib import Path

import pytest

from fuseline.benchmarks.harness.subject import Subject, open_subject
from fuseline.benchmarks.headline.measure import BackendRounds, HeadlineRun, run_headline
from fuseline.benchmarks.headline.report import as_json, as_table, verdicts
from fuseline.benchmarks.serving.figures import ServingFigures
from fuseline.serve.errors import InputError


def served(images_per_s: float) -> ServingFigures:
    latency_ms = {"p50": 1.0, "p90": 2.0, "p99": 3.0, "max": 4.0}
    return ServingFigures(32, 1, images_per_s, images_per_s, latency_ms, 100, 1.0, 0.5, 0.1)


def run(openvino_served: float = 39.0) -> HeadlineRun:
    return HeadlineRun(
        model="resnet18",
        backends=[
            BackendRounds("onnxruntime", False, [38.0, 19.0, 38.0], [served(37.0), served(18.5), served(37.0)]),
            BackendRounds("openvino", True, [40.0, 20.0, 40.0], [served(openvino_served), served(19.5), served(39.0)]),
        ],
        eager_images_per_s=[22.0, 11.0, 22.0],
        eager_latency_ms=[50.0, 100.0, 50.0],
        idle_cores=[0.0, 0.01],
    )


def test_every_backend_is_held_against_its_bare_self_and_the_default_against_eager() -> None:
    found = verdicts(run())
    assert [(v.what, round(v.ratio.median, 3), v.bar, v.passed) for v in found] == [
        ("served on ONNX Runtime / the bare backend", 0.974, 0.95, True),
        ("served on OpenVINO / the bare backend", 0.975, 0.95, True),
        ("served on OpenVINO / eager PyTorch FP32", 1.773, 1.7, True),
    ]


def test_one_bad_round_of_three_does_not_fail_and_two_do() -> None:
    one_bad = run(openvino_served=20.0)
    assert all(v.passed for v in verdicts(one_bad))
    one_bad.backends[1].served[1] = served(10.0)
    assert [v.passed for v in verdicts(one_bad)] == [True, False, False]


def test_the_table_says_pass_and_fail_and_the_json_has_every_round() -> None:
    found = run()
    assert as_table(found).row_count == 5
    assert str(as_table(found).caption).count("PASS") == 3
    found.backends[0].server_ready_s, found.backends[0].server_peak_mb = 1.84, 315.2
    assert "the server on ONNX Runtime: ready in 1.8 s, at most 315 MB resident" in str(as_table(found).caption)
    found.backends[0].served = [served(1.0)] * 3
    found.idle_cores.append(0.5)
    caption = str(as_table(found).caption)
    assert "FAIL  served on ONNX Runtime" in caption
    assert "0.50 of a core" in caption
    written = json.loads(json.dumps(as_json(found)))
    assert written["rounds"]["eager_images_per_s"] == [22.0, 11.0, 22.0]
    assert [verdict["passed"] for verdict in written["verdicts"]] == [False, True, True]
    assert written["max_idle_cores"] == 0.5


def test_a_package_without_its_checkpoint_has_no_eager(colours: Path) -> None:
    with pytest.raises(InputError, match="needs"):
        run_headline(Subject("colours", colours, None), backends=["onnxruntime"], rounds=1, seconds=0.1)


@pytest.mark.slow
def test_a_whole_run_measures_every_contender_in_every_round() -> None:
    with open_subject("resnet8") as subject:
        found = run_headline(subject, backends=["onnxruntime", "openvino"], rounds=2, seconds=0.2, threads=1)
    assert len(found.eager_images_per_s) == len(found.eager_latency_ms) == 2
    assert [len(each.served) for each in found.backends] == [len(each.bare_images_per_s) for each in found.backends]
    assert sum(each.is_default for each in found.backends) == 1
    assert len(found.idle_cores) == 2 * 6
    assert len(verdicts(found)) == 3
