"""What an export assumed is told by the server's log, its description, the client and the commands."""

import io
import json
import logging
from pathlib import Path

import pytest
from rich.console import Console

from fuseline.export.inspection.inspection_view import show_package
from fuseline.export.inspection.package_inspection import inspect_package
from fuseline.protos.classify_pb2 import GetModelRequest
from fuseline.serve.client import Client
from fuseline.serve.model_description import ArtifactVerification
from fuseline.serve.model_package import Assumption, Verification, load_package
from tests.commands import Run
from tests.fakes.colours import encoded, plain, write_colours_package
from tests.serve.conftest import StartServer
from tests.serve.processes import server_process

OPEN = Assumption(
    key="shortcut",
    value="B",
    meaning="shortcuts are convolutions",
    alternatives=("A", "C"),
    flag="--assume shortcut=VALUE",
)
SETTLED = Assumption(key="size", value="8", meaning="pictures are 8 x 8", flag="--input-size 8", settled_by="a flag")
LINE = "assumed shortcut=B: shortcuts are convolutions; it could also be A, C; to settle it: --assume shortcut=VALUE"


def verification(**told: float) -> Verification:
    return Verification(
        artifact="model.onnx",
        backend="onnxruntime (CPU)",
        images=40,
        image_source="40 images of a folder",
        top1_agreement=0.975,
        ties=0,
        max_abs_difference=0.1,
        mean_abs_difference=0.01,
        logit_range=5,
        bar="none",
        passed=True,
        **told,
    )


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The colours model, of which something was assumed."""
    return write_colours_package(
        tmp_path_factory.mktemp("assumed") / "colours",
        assumptions=(OPEN, SETTLED),
        verification=(verification(accuracy=0.9, eager_accuracy=0.925), verification()),
    )


async def test_the_description_has_all_of_it(start_server: StartServer, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        served = await start_server()
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert warnings == [f"colours: {LINE}"]
    described = await served.stub.GetModel(GetModelRequest())
    first, second = described.assumptions
    assert (first.key, first.value, first.meaning, first.flag) == (OPEN.key, OPEN.value, OPEN.meaning, OPEN.flag)
    assert tuple(first.alternatives) == OPEN.alternatives
    assert not first.HasField("settled_by")
    assert (second.key, second.settled_by) == ("size", "a flag")
    told, untold = described.verification
    assert (told.accuracy, told.eager_accuracy, told.agreement, told.images) == (0.9, 0.925, 0.975, 40)
    assert not untold.HasField("accuracy")
    assert not untold.HasField("eager_accuracy")
    assert (described.task, described.crop_offset) == ("single-label", "rounded")


def test_the_client_has_all_of_it(live_address: str) -> None:
    with Client(live_address) as client:
        model = client.model()
    assert model.assumptions == (OPEN, SETTLED)
    assert [assumption.is_open for assumption in model.assumptions] == [True, False]
    known = {"artifact": "model.onnx", "backend": "onnxruntime (CPU)", "images": 40, "agreement": 0.975, "passed": True}
    assert model.verification == (
        ArtifactVerification(**known, accuracy=0.9, eager_accuracy=0.925),  # type: ignore[arg-type]
        ArtifactVerification(**known, accuracy=None, eager_accuracy=None),  # type: ignore[arg-type]
    )


def test_classify_says_what_is_open_beside_its_answers(live_address: str, tmp_path: Path, run_fuseline: Run) -> None:
    (tmp_path / "red.png").write_bytes(encoded(plain("red")))

    code, out, err = run_fuseline("classify", tmp_path, "--address", live_address)
    assert code == 0
    said = f"{OPEN.key}={OPEN.value}"
    assert err.startswith(f"warning: colours: assumed at its export and settled by nothing: {said}; its server's log")
    assert err.count("\n") == 1
    assert "assumed" not in out
    code, out, err = run_fuseline("classify", tmp_path, "--address", live_address, "--json")
    assert (code, err) == (0, "")
    assert json.loads(out)["assumptions"] == [said]


def test_workers_log_it_once(package: Path) -> None:
    arguments = ("--port", 0, "--http-port", 0, "--backend", "onnxruntime", "--workers", 2)
    with server_process(package, *arguments) as server:
        with Client(server.address) as client:
            assert client.model().assumptions == (OPEN, SETTLED)
        server.process.terminate()
        code, log = server.end()
    assert code == 0
    assert [line.partition(" WARNING ")[2] for line in log.splitlines() if LINE in line] == [
        f"fuseline.serve.model (backend): colours: {LINE}"
    ]


def test_inspecting_a_package_shows_it(package: Path) -> None:
    stream = io.StringIO()
    found = inspect_package(load_package(package))
    show_package(found, as_json=False, console=Console(file=stream, width=300, highlight=False))
    shown = stream.getvalue()
    assert LINE in shown
    assert "size=8: pictures are 8 x 8; told by a flag" in shown
    assert "accuracy" in shown
    assert "90.00%" in shown
    assert "92.50%" in shown
