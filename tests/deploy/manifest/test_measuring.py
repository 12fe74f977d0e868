"""What is measured is a real server, whatever this shell has set and however the ports lie."""

import io
import os
import socket
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from fuseline.deploy.manifest import measuring
from fuseline.deploy.manifest.measuring import measure, peak_bytes
from fuseline.serve.model_package import load_package
from tests.fakes.colours import write_colours_package


def test_a_port_that_was_taken_meanwhile_is_tried_again_and_settings_of_the_shell_don_t_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = load_package(write_colours_package(tmp_path / "colours"))
    # By these the server would not start at all, and calls would go to a proxy that there is not.
    monkeypatch.setenv("FUSELINE_BACKEND", "caffe")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    free_port = measuring._free_port
    with socket.create_server(("127.0.0.1", 0)) as taken:
        ports = iter([taken.getsockname()[1]])
        monkeypatch.setattr(measuring, "_free_port", lambda: next(ports, None) or free_port())
        own = os.sched_getaffinity(0)
        found = measure(package, seconds=1, cpus=1)
    assert next(ports, None) is None
    assert (found.package, found.cpus) == ("colours", 1)
    # The CPUs that the server was bound to are not this process's.
    assert os.sched_getaffinity(0) == own


def test_the_memory_of_processes_below_counts_too() -> None:
    hold = "data = bytearray(50 * 2**20)\nprint('held', flush=True)\ninput()\n"
    code = f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {hold!r}], check=True)\n"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        assert 60 * 2**20 < peak_bytes(process.pid) < 200 * 2**20
        process.communicate("\n")


def test_a_server_that_is_ready_before_it_says_where_it_listens_is_waited_for(tmp_path: Path) -> None:
    stdout, answers = tmp_path / "stdout", []
    stdout.touch()

    class Ready(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answers.append(self.path)
            if len(answers) > 1:
                stdout.write_text("ready in 0.1 s: gRPC on 127.0.0.1:80" + "01\n" * (len(answers) > 2))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Ready) as server, subprocess.Popen(["cat"], stdin=subprocess.PIPE) as process:
        serving = threading.Thread(target=server.serve_forever)
        serving.start()
        try:
            found = measuring._address_when_ready(process, server.server_port, stdout, io.StringIO())
        finally:
            server.shutdown()
            serving.join()
            process.kill()
    assert found == "127.0.0.1:8001"
    assert answers == ["/readyz"] * 3
