"""What the page's part of a server reads: the report of a package, and what load is asked for."""

from fuseline.serve.console.facts import folds_in
from fuseline.serve.console.load import MAX_RATE, MAX_SECONDS, load_request_from_json
from fuseline.serve.errors import RequestError
from fuseline.serve.http.http_answers import json_bytes
from tests.fuzz.target import Target, check_message


def _report(data: bytes) -> None:
    told = folds_in(data)
    if told is not None:
        # JSON has no infinity and no NaN.
        assert json_bytes(told)
        assert told["largest_difference"] >= 0


def _reports() -> list[bytes]:
    share = b'{"fp16_layers": 0, "layers": 20, "fp16_weights": 0, "weights": 268336, "fp32_layer_names": ["conv1"]}'
    fold = b'{"convolution": "conv1", "batchnorm": "bn1", "largest_gain": 0.45, "max_abs_error": 2.9e-06}'
    return [
        b'{"folds": [' + fold + b"," + fold + b'], "kept": [], "precision": {"model.onnx": ' + share + b"}}",
        b'{"folds": [], "kept": [{"batchnorm": "bn1"}], "precision": {}}',
        b'{"folds": [{"max_abs_error": NaN}], "kept": [], "precision": {}}',
        b'{"folds": [{"max_abs_error": 1e999}], "kept": [], "precision": {"a": {"layers": 1e400}}}',
        b"[" * 10_000,
    ]


def _load(data: bytes) -> None:
    try:
        asked = load_request_from_json(data)
    except RequestError as error:
        check_message(error, most=500)
        return
    assert 0 < asked.rate <= MAX_RATE
    assert 0 < asked.seconds <= MAX_SECONDS


def _loads() -> list[bytes]:
    return [
        b'{"model": "colours", "version": "1", "rate": 200, "seconds": 5}',
        b'{"model": "colours", "rate": 1e-3}',
        b'{"model": "colours", "rate": Infinity}',
        b'{"model": "' + b"x" * 5000 + b'", "rate": 1}',
    ]


TARGETS = {"reports": Target(_report, _reports), "loads": Target(_load, _loads)}
