import json
from pathlib import Path

import pytest

from fuseline.benchmarks.gpu import probe
from fuseline.serve.errors import BackendUnavailableError
from tests.commands import exit_code


def test_every_capability_is_tried_and_what_happened_is_told(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    trt = pytest.importorskip("tensorrt_rtx", reason="pip install 'fuseline[rtx]' to build engines in tests")
    written = tmp_path / "probe.json"
    assert exit_code("fuseline", "bench", "gpu", "--probe", "--json", written) == 0

    found = json.loads(capsys.readouterr().out)
    assert json.loads(written.read_text()).items() >= found.items()
    assert found["library_version"] == trt.__version__
    attempts = {attempt["asked"]: attempt for attempt in found["attempts"]}
    assert attempts.keys() == {"unset", *trt.ComputeCapability.__members__}
    assert attempts["SM89"]["built"]
    assert attempts["SM89"]["plan_bytes"] > 10_000
    assert not attempts["NONE"]["built"]
    assert "kNONE" in attempts["NONE"]["error"]
    if found["capability"] is None:
        assert found["answer"].startswith("not known: ")
        assert not any("ran" in attempt for attempt in found["attempts"])


def test_without_the_library_that_is_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(library: str) -> None:
        raise BackendUnavailableError(f"{library} is not installed: pip install it")

    monkeypatch.setattr(probe, "import_library", refuse)
    found = probe.probe_rtx()
    assert found["answer"] == "not tried: tensorrt_rtx is not installed: pip install it"
    assert found["attempts"] == []


@pytest.mark.parametrize(
    ("attempts", "answer"),
    [
        (
            [{"asked": "unset", "built": True, "ran": True}, {"asked": "SM80", "built": True, "ran": False}],
            "on sm90 these engines run and answer rightly: unset",
        ),
        (
            [{"asked": "unset", "built": True, "ran": False}, {"asked": "SM75", "built": False}],
            "no engine of TensorRT for RTX runs on sm90; built: unset",
        ),
        ([{"asked": "unset", "built": False}], "no engine of TensorRT for RTX runs on sm90; built: none"),
    ],
)
def test_the_answer_is_one_sentence(attempts: list[dict[str, object]], answer: str) -> None:
    assert probe.answer_of({"capability": "sm90", "attempts": attempts}) == answer
