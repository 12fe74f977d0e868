"""What /metrics shows: exemplars, formats, and Triton's names."""

from itertools import pairwise

import numpy as np
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as open_metrics_families
from prometheus_client.parser import text_string_to_metric_families

from fuseline.serve.batching.batch_stats import BatchStats
from fuseline.serve.batching.requests import BatchedRows
from fuseline.serve.http.accept import prefers
from fuseline.serve.metrics.exposition import OPEN_METRICS, TEXT, content_type, metrics_text
from fuseline.serve.metrics.metrics import Metrics
from fuseline.serve.metrics.triton_metrics import TritonMetrics
from fuseline.serve.workers.reports import Report, report_of, report_text, summed

LOGITS = np.zeros((2, 4), np.float32)
ANSWERED = BatchedRows(LOGITS, 1.0, 2.0, 2, LOGITS, 0)
PROMETHEUS = (
    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5,application/openmetrics-text;version=0.0.1;"
    "q=0.4,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.3,text/plain;version=0.0.4;q=0.2,*/*;q=0.1"
)


@pytest.mark.parametrize(
    ("accept", "preferred"),
    [
        (PROMETHEUS, True),
        ("application/openmetrics-text", True),
        ("Application/OpenMetrics-Text; version=1.0.0", True),
        ("", False),
        ("*/*", False),
        ("text/plain", False),
        ("text/html,*/*;q=0.8", False),
        ("application/openmetrics-text;q=0", False),
        ("application/openmetrics-text;q=0.1, text/plain;q=0.9", False),
        ("application/openmetrics-text;q=nonsense", False),
        (";;,,=", False),
    ],
)
def test_openmetrics_is_for_who_prefers_it(accept: str, preferred: bool) -> None:
    assert prefers(accept, OPEN_METRICS, TEXT) is preferred


def exemplars_of(text: bytes) -> dict[str, dict[str, str]]:
    """Labels of each exemplar of the requests' histogram, by its bucket."""
    assert b"# EOF" in text
    return {
        sample.labels["le"]: dict(sample.exemplar.labels)
        for family in open_metrics_families(text.decode())
        if family.name == "fuseline_request_seconds"
        for sample in family.samples
        if sample.exemplar is not None
    }


def test_a_bucket_names_its_latest_request_that_can_be_found() -> None:
    metrics = Metrics()
    for number, seconds in enumerate((0.0004, 0.0009, 0.0008)):
        metrics.count_request("Classify", "m", "OK", seconds, ANSWERED, exemplar={"request_id": f"r-{number}"})
    metrics.count_request("Classify", "m", "OK", 0.0007, ANSWERED)
    expected = {"0.0005": {"request_id": "r-0"}, "0.001": {"request_id": "r-2"}}
    assert exemplars_of(metrics_text(metrics.registry, open_metrics=True)) == expected
    assert b"r-2" not in metrics_text(metrics.registry)
    assert content_type(open_metrics=True).startswith("application/openmetrics-text")


def test_the_sum_of_processes_names_the_latest_of_all() -> None:
    parts = [Metrics(), Metrics()]
    for number, part in enumerate(parts):
        part.count_request("Classify", "m", "OK", 0.0004, ANSWERED, exemplar={"request_id": f"r-{number}"})
    reports = [report_of(part.registry, part.statistics) for part in parts]
    total = Report.model_validate_json(summed(reversed(reports)).model_dump_json())
    assert exemplars_of(report_text(total, open_metrics=True)) == {"0.0005": {"request_id": "r-1"}}


def test_durations_have_buckets_from_a_quarter_of_a_millisecond_to_ten_seconds() -> None:
    metrics = Metrics()
    metrics.count_request("Classify", "m", "OK", 0.0002)
    text = metrics_text(metrics.registry).decode()
    bounds = [
        float(sample.labels["le"])
        for family in text_string_to_metric_families(text)
        if family.name == "fuseline_request_seconds"
        for sample in family.samples
        if sample.name.endswith("_bucket")
    ]
    assert (bounds[0], bounds[-2], bounds[-1]) == (0.00025, 10.0, float("inf"))
    fine = [bound for bound in bounds if 0.001 <= bound <= 0.3]
    assert max(after / before for before, after in pairwise(fine)) <= 1.7


def test_each_batch_is_counted_under_its_reason() -> None:
    metrics = Metrics()
    for reason in ("full", "idle", "full"):
        metrics.count_batch("m", BatchStats(3, 4, 0.5, 2.0, False, reason), "2")
    text = metrics_text(metrics.registry).decode()
    assert 'fuseline_batches_total{model="m",reason="full",version="2"} 2.0' in text
    assert 'fuseline_batches_total{model="m",reason="idle",version="2"} 1.0' in text
    assert 'fuseline_batches_total{model="m",reason="delay",version="2"} 0.0' in text


def counted_for_triton() -> Metrics:
    metrics = Metrics()
    metrics.registry.register(TritonMetrics(metrics))
    for code in ("OK", "OK"):
        metrics.count_request("ModelInfer", "m", code, 0.25, ANSWERED, "2")
    for code in ("RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED", "CANCELLED", "INTERNAL", "INVALID_ARGUMENT"):
        metrics.count_request("ModelInfer", "m", code, 0.5, None, "2")
    metrics.count_request("ModelInfer", "", "NOT_FOUND", 0.5)
    metrics.count_batch("m", BatchStats(3, 4, 0.5, 2.0, failed=False), "2")
    metrics.count_batch("m", BatchStats(1, 1, 0.5, 2.0, failed=True), "2")
    return metrics


TRITONS = {
    "nv_inference_request_success": 2,
    "nv_inference_request_failure.REJECTED": 2,
    "nv_inference_request_failure.CANCELED": 1,
    "nv_inference_request_failure.BACKEND": 1,
    "nv_inference_request_failure.OTHER": 1,
    "nv_inference_count": 3,
    "nv_inference_exec_count": 1,
    "nv_inference_request_duration_us": 500_000,
    "nv_inference_queue_duration_us": 2_000,
    "nv_inference_compute_input_duration_us": 0,
    "nv_inference_compute_infer_duration_us": 4_000,
    "nv_inference_compute_output_duration_us": 0,
}


def tritons_of(text: str) -> dict[str, float]:
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    ours = [sample for sample in samples if sample.name.startswith("nv_")]
    assert {(sample.labels["model"], sample.labels["version"]) for sample in ours} == {("m", "2")}
    # The parser adds the suffix that Triton's counters lack.
    assert "_total{" not in "".join(line for line in text.splitlines() if line.startswith("nv_"))
    return {
        ".".join((sample.name.removesuffix("_total"), *filter(None, [sample.labels.get("reason")]))): sample.value
        for sample in ours
    }


def test_triton_s_names_hold_triton_s_counts_and_are_counters_without_a_suffix() -> None:
    text = metrics_text(counted_for_triton().registry).decode()
    assert tritons_of(text) == TRITONS
    assert "# TYPE nv_inference_request_success counter" in text.splitlines()
    assert "# TYPE nv_inference_pending_request_count gauge" in text.splitlines()


def test_they_are_summed_over_processes_and_last_when_one_ends() -> None:
    one = counted_for_triton()
    reports = [report_of(one.registry, one.statistics).counts() for _ in range(2)]
    assert tritons_of(report_text(summed(reports)).decode()) == {name: 2 * value for name, value in TRITONS.items()}


def test_without_the_flag_there_are_none() -> None:
    assert b"nv_" not in metrics_text(Metrics().registry)
