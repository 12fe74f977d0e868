"""`fuseline serve --workers 2` over TLS: real processes on the loopback."""

import asyncio
import os
import signal
import ssl
import urllib.request
from pathlib import Path

import pytest

from fuseline.serve.settings import Settings
from fuseline.serve.tls.certificate import CertificateFiles
from fuseline.serve.tls.certificates import copied_in_memory
from fuseline.serve.workers.child_process import ProcessConfig
from fuseline.serve.workers.worker_process import certificates_of
from tests.serve.certificates import Authority, shown_at
from tests.serve.processes import FAST, free_port, lives, server_process
from tests.serve.workers.test_worker_processes import children_of, until


def test_a_worker_that_starts_while_the_files_are_broken_takes_its_supervisors_copy(tmp_path: Path) -> None:
    authority = Authority(tmp_path / "tls")
    pair = authority.issue()
    sound = CertificateFiles(pair.cert, pair.key).read()
    pair.key.write_text("nothing")
    copy = tuple(copied_in_memory(sound))
    config = ProcessConfig(
        title="worker 1",
        settings=Settings.model_validate(pair.settings),
        folders=(),
        channel_file=0,
        door_file=0,
        lifeline_file=0,
        certificate_copy=copy,
    )
    certificates = certificates_of(config)
    assert certificates is not None
    assert certificates.current.key_pem == sound.key_pem
    for descriptor in copy:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(descriptor)
    plain = config.model_copy(update={"settings": Settings(), "certificate_copy": ()})
    assert certificates_of(plain) is None
    # What a process is told stands in its command line, which every user of the machine may read.
    assert sound.key_pem.decode() not in config.model_dump_json()


@pytest.mark.slow
async def test_workers_are_restarted_and_probes_answered_over_tls_whatever_becomes_of_the_files(
    package: Path, tmp_path: Path
) -> None:
    authority = Authority(tmp_path / "tls")
    pair = authority.issue()
    flags = (*pair.flags, "--workers", 2, "--http-port", free_port())
    with server_process(package, *FAST, *flags) as server:
        assert server.http_address is not None
        port, http_port = (int(address.rpartition(":")[2]) for address in (server.address, server.http_address))
        first = shown_at(port, authority.ca)
        assert first == shown_at(http_port, authority.ca) == pair.der
        pair.key.write_text("nothing")
        workers = [pid for pid, kind in children_of(server).items() if kind == "worker"]
        for pid in workers:
            os.kill(pid, signal.SIGKILL)
        await until(lambda: not any(lives(pid) for pid in workers))

        def status(path: str) -> int:
            context = ssl.create_default_context(cafile=authority.ca)
            url = f"https://localhost:{http_port}{path}"
            with urllib.request.urlopen(url, timeout=20, context=context) as answer:
                return int(answer.status)

        # Until they are there again the supervisor answers, by the same certificate.
        assert await asyncio.to_thread(status, "/healthz") == 200

        def serves() -> bool:
            return list(children_of(server).values()).count("worker") == 2 and _shown(port) == first

        def _shown(at: int) -> bytes | None:
            try:
                return shown_at(at, authority.ca)
            except OSError:
                return None

        await until(serves)
        hanging = [pid for pid, kind in children_of(server).items() if kind == "worker"]
        for pid in hanging:
            os.kill(pid, signal.SIGSTOP)
        try:
            assert await asyncio.to_thread(status, "/healthz") == 200
        finally:
            for pid in hanging:
                os.kill(pid, signal.SIGCONT)
        renewed = authority.issue()
        await until(lambda: all(_shown(at) == renewed.der for at in (port, http_port) * 4))
        server.process.send_signal(signal.SIGTERM)
        code, stderr = await asyncio.to_thread(server.end)
    assert code == 0, stderr
