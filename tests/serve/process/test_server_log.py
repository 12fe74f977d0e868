"""The log: lines for people, and JSON; what is in them, and what never is."""

import base64
import io
import json
import logging
import re
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from fuseline.protos.classify_pb2 import ClassifyRequest, Image
from fuseline.protos.classify_pb2_grpc import ClassifierStub
from fuseline.protos.open_inference_pb2 import LogSettingsRequest
from fuseline.protos.open_inference_pb2_grpc import GRPCInferenceServiceStub
from fuseline.serve.process.log_lines import shortened
from fuseline.serve.process.server_log import LogSettings, ServerLog
from tests.serve.processes import FAST, ROOT, ServerProcess, finished, free_port, server_process

TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")


@pytest.fixture
def logger() -> Iterator[logging.Logger]:
    """A logger that no other handler hears."""
    logger = logging.Logger("fuseline.test")
    yield logger
    logger.handlers.clear()


class Lines(io.StringIO):
    """What a log writes, once it is written."""

    log: ServerLog

    def getvalue(self) -> str:
        self.log.flush()
        return super().getvalue()


def log_to(logger: logging.Logger, form: Any, origin: str = "") -> Lines:
    stream = Lines()
    stream.log = ServerLog(stream, origin, form)
    logger.addHandler(stream.log)
    return stream


def test_json_has_an_object_a_line_with_the_fields_that_a_collector_wants(logger: logging.Logger) -> None:
    stream = log_to(logger, "json", "worker 2")
    logger.warning("two\nlines of %s", "it", extra={"request_id": "r-1", "fields": {"model": "m", "level": "forged"}})
    try:
        raise KeyError("gone")
    except KeyError:
        logger.exception("failed", extra={"error_id": "e-1"})
    first, second = map(json.loads, stream.getvalue().splitlines())
    assert TIME.fullmatch(first.pop("time"))
    assert first.pop("pid") > 0
    assert first == {
        "level": "WARNING",
        "logger": "fuseline.test",
        "message": "two\nlines of it",
        "process": "worker 2",
        "request_id": "r-1",
        "model": "m",
    }
    assert second["error_id"] == "e-1"
    assert second["exception"].startswith("Traceback")
    assert second["exception"].endswith("KeyError: 'gone'")


@pytest.mark.parametrize("form", ["text", "json"])
@pytest.mark.parametrize("name", ["a\nb", "a\r\x1b[31mb", "a\u2028b\x85c", "a\x00b", "a\ud800b", "é\U0001f600"])
def test_no_name_forges_a_line_or_steers_a_terminal(logger: logging.Logger, form: str, name: str) -> None:
    stream = log_to(logger, form)
    logger.warning("served: %s", name)
    line = stream.getvalue()
    assert len(line.splitlines()) == 1
    assert line.endswith("\n")
    assert not set(line[:-1]) & {*map(chr, range(32)), "\x85", "\u2028", "\ud800"}
    line.encode()


def test_a_line_for_people_ends_with_the_request_s_id_and_a_traceback_follows_it(logger: logging.Logger) -> None:
    stream = log_to(logger, "text")
    try:
        raise KeyError("gone")
    except KeyError:
        logger.exception("failed", extra={"request_id": "r-1"})
    first, *traceback = stream.getvalue().splitlines()
    assert first.endswith("ERROR fuseline.test: failed [request r-1]")
    assert traceback[0].startswith("Traceback")


def test_json_heeds_triton_s_settings_and_keeps_its_own_time(logger: logging.Logger) -> None:
    stream = log_to(logger, "json")
    log = logger.handlers[0]
    assert isinstance(log, ServerLog)
    log.apply(LogSettings(log_warning=False, log_format="ISO8601"))
    logger.warning("quiet")
    logger.error("loud")
    (line,) = stream.getvalue().splitlines()
    assert TIME.fullmatch(json.loads(line)["time"])
    logging.getLogger("fuseline").setLevel(logging.NOTSET)


def test_a_long_message_keeps_both_its_ends() -> None:
    text = shortened("a" * 20_000 + "b" * 20_000)
    assert len(text) < 17_000
    assert text.startswith("aaa")
    assert text.endswith("bbb")
    assert "23616 characters" in text


def verbose(server: ServerProcess) -> None:
    with grpc.insecure_channel(server.address) as channel:
        settings = {"log_verbose_level": {"uint32_param": 1}}
        GRPCInferenceServiceStub(channel).LogSettings(LogSettingsRequest(settings=settings))


def ended(server: ServerProcess) -> list[dict[str, Any]]:
    """End the server; return its log, each line of which must be JSON."""
    server.process.send_signal(signal.SIGTERM)
    code, stderr = server.end()
    assert code == 0, stderr
    return [json.loads(line) for line in stderr.splitlines()]


def pictures_of(shared_data: Path) -> list[bytes]:
    found = sorted(path for path in shared_data.rglob("*") if path.suffix in {".jpg", ".JPEG", ".jpeg", ".png"})
    assert found
    return [path.read_bytes() for path in found[:: max(1, len(found) // 3)][:3]]


@pytest.mark.parametrize("flags", [(), pytest.param(("--workers", 2), marks=pytest.mark.slow)])
def test_real_pictures_and_tokens_leave_nothing_of_themselves_in_the_log(
    package: Path, shared_data: Path, flags: tuple[object, ...]
) -> None:
    pictures = pictures_of(shared_data)
    token = "s3cret-token-of-a-client"
    metadata = (("x-request-id", "with-picture"), ("authorization", f"Bearer {token}"))
    http = ("--http-port", free_port())
    with server_process(package, *FAST, *flags, *http, "--log-format", "json") as server:
        verbose(server)
        with grpc.insecure_channel(server.address) as channel:
            stub = ClassifierStub(channel)
            for picture in pictures:
                # Whole ones, damaged ones, and one whose bytes are its model's name.
                stub.Classify(ClassifyRequest(images=[Image(encoded=picture)]), metadata=metadata)
                for request in (
                    ClassifyRequest(images=[Image(encoded=picture[: len(picture) // 2])]),
                    ClassifyRequest(images=[Image(encoded=picture[100:])]),
                    ClassifyRequest(images=[Image(raw=picture)]),
                    ClassifyRequest(model=picture.decode("latin-1"), images=[Image(encoded=picture)]),
                ):
                    with pytest.raises(grpc.RpcError):
                        stub.Classify(request, metadata=metadata)
                over_http = urllib.request.Request(
                    f"http://{server.http_address}/v1/classify",
                    picture,
                    {"content-type": "image/jpeg", "authorization": f"Bearer {token}"},
                )
                with urllib.request.urlopen(over_http, timeout=10) as answer:
                    assert answer.status == 200
        lines = ended(server)
    requests = [line for line in lines if line["logger"] == "fuseline.serve.services.inference"]
    assert len(requests) == 6 * len(pictures)
    assert {line["request_id"] for line in requests if line["method"] == "Classify"} == {"with-picture"}
    assert {line["process"].partition(" ")[0] for line in requests} == ({"worker"} if flags else {"server"})
    text = "\n".join(map(json.dumps, lines))
    assert token not in text
    for picture in pictures:
        for start in range(0, min(len(picture), 1024) - 24, 24):
            piece = picture[start : start + 24]
            assert base64.b64encode(piece).decode() not in text
            assert piece.hex() not in text
            assert json.dumps(piece.decode("latin-1"))[1:-1] not in text
            assert repr(piece)[2:-1] not in text
    assert max(map(len, text.splitlines())) < 4000


def test_a_server_that_cannot_start_says_so_in_json_too(tmp_path: Path) -> None:
    code, _, stderr = finished(tmp_path, "--port", 0, "--http-port", 0, "--log-format", "json")
    assert code == 2
    (line,) = map(json.loads, stderr.splitlines())
    assert line["level"] == "ERROR"
    assert str(tmp_path) in line["message"]


def test_an_error_that_nothing_catches_is_one_object(tmp_path: Path) -> None:
    program = (
        "import logging, threading, warnings\n"
        "from fuseline.serve.process.server_log import start_log\n"
        "start_log(form='json')\n"
        "warnings.warn('old')\n"
        "thread = threading.Thread(target=lambda: 1 / 0)\n"
        "thread.start()\n"
        "thread.join()\n"
        "raise KeyError('gone')\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    assert [line["level"] for line in lines] == ["WARNING", "CRITICAL", "CRITICAL"]
    assert lines[1]["exception"].endswith("ZeroDivisionError: division by zero")
    assert lines[2]["exception"].endswith("KeyError: 'gone'")
