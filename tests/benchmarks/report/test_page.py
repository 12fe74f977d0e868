import base64
import json
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fuseline.benchmarks.engines.compare import EngineComparison, EngineFigures
from fuseline.benchmarks.engines.compare import as_json as engines_as_json
from fuseline.benchmarks.harness.latency_histogram import encoded, histogram_of, percentiles_ms
from fuseline.benchmarks.harness.results import conditions, write_result
from fuseline.benchmarks.load.server_watch import Batches
from fuseline.benchmarks.load.target import Target
from fuseline.benchmarks.report.page import write_report
from fuseline.benchmarks.report.results import ServeResult, labels_of, read_results
from fuseline.benchmarks.serving.figures import OpenFigures, ServingFigures
from fuseline.benchmarks.serving.loadgen import LoadGenFigures
from fuseline.benchmarks.serving.loadgen_comparison import ScenarioRounds
from fuseline.benchmarks.serving.loadgen_comparison import as_json as loadgen_as_json
from fuseline.benchmarks.serving.table import as_json
from fuseline.protos.classify_pb2 import GetModelResponse
from fuseline.serve.errors import InputError

HISTOGRAM = histogram_of(np.random.default_rng(0).lognormal(-5, 0.5, 3000))
COMMON: dict[str, Any] = {
    "images_per_request": 1,
    "latency_ms": percentiles_ms(HISTOGRAM),
    "latency_histogram": encoded(HISTOGRAM),
    "requests": 3000,
    "window_s": 5.0,
    "server_cpu_ms_per_request": 0.5,
    "goodput_per_s": 40.0,
    "batches": Batches(((1, 1, 10), (2, 2, 20), (3, 4, 30)), 60, 150, 12),
}


def target(backend: str) -> Target:
    model = GetModelResponse(name="net", backend=backend, precision="fp32", height=8, width=8, channels=3)
    return Target("127.0.0.1:1", model, np.zeros((1, 8, 8, 3), np.uint8), np.zeros((1, 2), np.float32))


def closed(concurrency: int, rate: float = 100.0, share: float = 0.3) -> ServingFigures:
    return ServingFigures(
        concurrency=concurrency, requests_per_s=rate, images_per_s=rate, generator_cpu_share=share, **COMMON
    )


def opened(rate: float, lag_ms: float = 0.1, errors: Mapping[str, int] = Counter()) -> OpenFigures:
    lag = dict.fromkeys(COMMON["latency_ms"], lag_ms)
    return OpenFigures(
        rate_per_s=rate,
        requests_per_s=rate,
        images_per_s=rate,
        send_lag_ms=lag,
        generator_cpu_share=0.3,
        errors=dict(errors),
        **COMMON,
    )


def written(path: Path, benchmark: str, figures: Mapping[str, Any]) -> Path:
    write_result(path, benchmark, conditions(f"fuseline bench {benchmark} {path.stem}"), figures)
    return path


@pytest.fixture
def results(tmp_path: Path) -> dict[str, Path]:
    engines = [
        EngineFigures(
            candidate=name,
            precision="fp32",
            batch=batch,
            images_per_s=(10.0, 12.0, 11.0),
            call_ms=(1.0, 1.0, 1.0),
            ratios=(1.0, 1.1, 1.2),
            start_s=0.5,
            first_answer_s=0.6,
            peak_memory_mb=100.0,
        )
        for batch in (1, 8)
        for name in ("eager", "onnxruntime")
    ]
    comparison = EngineComparison("eager", tuple(engines), {"tensorrt": "there is no GPU"})
    theirs = LoadGenFigures("SingleStream", 100, 50.0, {"p50": 20.0, "p90": 21.0, "p99": 25.0, "mean": 20.1}, True, "")
    rounds = (ScenarioRounds("SingleStream", "1", [theirs, theirs], [closed(1, 49.0), closed(1, 51.0)]),)
    return {
        "ours": written(
            tmp_path / "ours.json",
            "serve",
            {"deadline_ms": 20.0}
            | as_json(
                target("onnxruntime"),
                [closed(1), closed(8, 700, share=0.95)],
                [opened(50), opened(200, lag_ms=5.0, errors={"UNANSWERED": 3})],
            ),
        ),
        "theirs": written(tmp_path / "theirs.json", "serve", as_json(target("openvino"), [closed(1)], [opened(50)])),
        "engines": written(tmp_path / "engines.json", "engines", engines_as_json(comparison)),
        "loadgen": written(tmp_path / "loadgen.json", "loadgen", loadgen_as_json(target("onnxruntime"), rounds)),
    }


def test_the_page_tells_the_best_pytorch_and_results_without_one_are_still_read(
    results: dict[str, Path], tmp_path: Path
) -> None:
    write_report([results["engines"]], tmp_path / "new")
    assert (tmp_path / "new" / "report.html").read_text().count(">the best<") == 2

    old = json.loads(results["engines"].read_text())
    del old["best_pytorch"]
    for row in old["engines"]:
        del row["ratio_to_best_pytorch_spread"]
    results["engines"].write_text(json.dumps(old))
    write_report([results["engines"]], tmp_path / "old")
    assert "best PyTorch" not in (tmp_path / "old" / "report.html").read_text()


def test_the_page_holds_every_chart_and_needs_no_other_file(results: dict[str, Path], tmp_path: Path) -> None:
    page, *charts = write_report(list(results.values()), tmp_path / "out")
    names = [chart.name for chart in charts]
    assert names == [
        "latency.png",
        "throughput.png",
        "percentiles-ours.png",
        "percentiles-theirs.png",
        "batches-ours.png",
        "batches-theirs.png",
        "engines-engines.png",
    ]
    text = page.read_text()
    pictures = re.findall(r'src="data:image/png;base64,([^"]+)"', text)
    assert [base64.b64decode(picture) for picture in pictures] == [chart.read_bytes() for chart in charts]
    assert not re.search(r'(?:src|href)="(?!data:)', text)
    for chart in charts:
        with Image.open(chart) as picture:
            assert picture.width > 1000
            assert len(picture.getcolors(2**24) or []) > 10


def test_the_page_tells_figures_machine_versions_and_commands(results: dict[str, Path], tmp_path: Path) -> None:
    page, *_ = write_report(list(results.values()), tmp_path / "out")
    text = page.read_text()
    for told in (
        "fuseline bench serve ours",
        "fuseline bench engines engines",
        "grpcio",
        "cores",
        "3 UNANSWERED",
        "ONNX Runtime FP32",
        "there is no GPU",
        "Held against MLPerf LoadGen",
        "0.990 to 1.010",
        "700.0",
    ):
        assert told in text, told
    # The generator was busy at 8 under way, and late at 200/s.
    assert text.count(" doubt") == 2


def test_what_is_not_in_the_results_is_not_on_the_page(results: dict[str, Path], tmp_path: Path) -> None:
    page, *charts = write_report([results["engines"]], tmp_path / "out")
    assert [chart.name for chart in charts] == ["engines-engines.png"]
    assert "Every point" not in page.read_text()


def test_names_from_files_are_escaped(results: dict[str, Path], tmp_path: Path) -> None:
    record = json.loads(results["ours"].read_text())
    record["server"]["model"] = "<script>alert(1)</script>"
    results["ours"].write_text(json.dumps(record))
    page, *_ = write_report([results["ours"]], tmp_path / "out")
    assert "<script>" not in page.read_text()


def test_series_are_named_by_what_tells_them_apart(results: dict[str, Path], tmp_path: Path) -> None:
    again = tmp_path / "again.json"
    again.write_bytes(results["ours"].read_bytes())
    served = [
        result
        for result in read_results([results["ours"], results["theirs"], again])
        if isinstance(result, ServeResult)
    ]
    assert labels_of(served[:2]) == ("onnxruntime", "openvino")
    assert labels_of(served[:1]) == ("net onnxruntime fp32",)
    assert labels_of(served) == ("onnxruntime, ours", "openvino", "onnxruntime, again")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "can't be read as JSON"),
        ("[1]", "is no result that a report is made of"),
        ('{"benchmark": "gpu"}', "expected what `fuseline bench serve|engines|loadgen|peers"),
        (
            '{"benchmark": "peers", "command": "x", "started_utc": "x", "machine": {}, "contenders": {}, "cases": []}',
            "cases: Value error, there is no case overload",
        ),
        ('{"benchmark": "serve", "command": "x", "started_utc": "x", "machine": {}}', "server: Field required"),
    ],
)
def test_a_file_that_is_no_result_is_told(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "odd.json"
    path.write_text(text)
    with pytest.raises(InputError, match=re.escape(message)):
        write_report([path], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_that_can_not_be_written(results: dict[str, Path]) -> None:
    with pytest.raises(InputError, match="--out /dev/null/x can't be written"):
        write_report([results["engines"]], Path("/dev/null/x"))
