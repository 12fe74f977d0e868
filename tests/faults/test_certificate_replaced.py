"""A certificate is replaced under load: no call fails, no connection ends, new ones see the new certificate."""

import asyncio
import http.client
import re
import signal
import ssl
import time
from pathlib import Path

import grpc
import pytest

from fuseline.protos.classify_pb2_grpc import ClassifierStub
from tests.fakes.colours import noise, write_colours_package
from tests.serve.certificates import Authority, Pair, shown_at
from tests.serve.processes import FAST, free_port, server_process
from tests.serve.services.classify_requests import raw_request

CALLERS = 8
REPLACEMENTS = 3


class Volume:
    """A folder that shows a pair as a volume of a Kubernetes secret does, and replaces it as that does."""

    def __init__(self, folder: Path, authority: Authority) -> None:
        folder.mkdir()
        self._folder = folder
        self._authority = authority
        self._count = 0
        self.pair = Pair(folder / "tls.pem", folder / "tls.key")
        self.replace()
        self.pair.cert.symlink_to("..data/tls.pem")
        self.pair.key.symlink_to("..data/tls.key")

    def replace(self, *, broken: bool = False) -> bytes:
        """Swap the link; the new certificate in DER."""
        self._count += 1
        pair = self._authority.issue("tls", into=self._folder / f"..{self._count}")
        if broken:
            pair.key.write_bytes(self._authority.issue("other").key.read_bytes())
        (self._folder / "..tmp").symlink_to(f"..{self._count}")
        (self._folder / "..tmp").rename(self._folder / "..data")
        return pair.der


class Load:
    """Calls over connections that stay, and over a new one each."""

    def __init__(self, port: int, http_port: int, ca: Path) -> None:
        self._address = f"localhost:{port}"
        self._http_port = http_port
        self._credentials = grpc.ssl_channel_credentials(ca.read_bytes())
        self._context = ssl.create_default_context(cafile=ca)
        self.ends = asyncio.Event()
        self.answers = {"old connections": 0, "new connections": 0, "https": 0}
        self.reconnections = {"grpc": 0, "https": 0}

    async def over_one_connection(self) -> None:
        """Fails at the first call that fails."""
        async with self._channel() as channel:
            stub = ClassifierStub(channel)
            await stub.Classify(raw_request(noise(1)), timeout=60)
            while not self.ends.is_set():
                await stub.Classify(raw_request(noise(1)), timeout=60)
                self.reconnections["grpc"] += channel.get_state() is not grpc.ChannelConnectivity.READY
                self.answers["old connections"] += 1

    async def over_new_connections(self) -> None:
        while not self.ends.is_set():
            async with self._channel() as channel:
                await ClassifierStub(channel).Classify(raw_request(noise(1)), timeout=60)
            self.answers["new connections"] += 1

    def over_https(self) -> None:
        """One connection that stays; the library would connect again by itself, so its socket is watched."""
        connection = http.client.HTTPSConnection("localhost", self._http_port, context=self._context, timeout=60)
        try:
            connection.connect()
            first = connection.sock
            while not self.ends.is_set():
                connection.request("GET", "/v1/models")
                with connection.getresponse() as answer:
                    assert answer.status == 200
                    answer.read()
                self.reconnections["https"] += connection.sock is not first
                self.answers["https"] += 1
                time.sleep(0.005)
        finally:
            connection.close()

    def _channel(self) -> grpc.aio.Channel:
        options = [("grpc.use_local_subchannel_pool", 1)]
        return grpc.aio.secure_channel(self._address, self._credentials, options=options)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
async def test_a_certificate_replaced_under_load_fails_no_call_and_ends_no_connection(
    workers: int, tmp_path: Path
) -> None:
    package = write_colours_package(tmp_path / "colours")
    authority = Authority(tmp_path / "authority")
    volume = Volume(tmp_path / "volume", authority)
    flags = (*volume.pair.flags, "--workers", workers, "--http-port", free_port())
    with server_process(package, *FAST, *flags) as server:
        assert server.http_address is not None
        port, http_port = (int(address.rpartition(":")[2]) for address in (server.address, server.http_address))
        load = Load(port, http_port, authority.ca)
        calls = [
            *(asyncio.create_task(load.over_one_connection()) for _ in range(CALLERS)),
            asyncio.create_task(load.over_new_connections()),
            asyncio.create_task(asyncio.to_thread(load.over_https)),
        ]
        taken_s = []
        try:
            for _ in range(REPLACEMENTS):
                taken_s.append(await _until_shown((port, http_port), volume.replace(), authority.ca, workers))
                # The parent process, which logs and counts, looks at a moment of its own.
                await _until_counted(http_port, authority.ca, "ok", len(taken_s))
                shown = await asyncio.to_thread(shown_at, port, authority.ca)
                volume.replace(broken=True)
                await _until_counted(http_port, authority.ca, "failed", len(taken_s))
                assert await asyncio.to_thread(shown_at, port, authority.ca) == shown
            assert not any(call.done() for call in calls), "a call has failed"
            with pytest.raises(ssl.SSLCertVerificationError):
                await asyncio.to_thread(shown_at, port, Authority(tmp_path / "stranger").ca)
        finally:
            load.ends.set()
            await asyncio.gather(*calls)
        server.process.send_signal(signal.SIGTERM)
        code, stderr = await asyncio.to_thread(server.end)
    assert code == 0, stderr
    assert "andshake" not in stderr, "whoever reaches the port fills the log"
    assert load.reconnections == {"grpc": 0, "https": 0}
    assert min(load.answers.values()) > 0
    assert stderr.count("TLS has a new certificate") == REPLACEMENTS
    assert stderr.count("the key is not that of the certificate") == REPLACEMENTS
    print(f"workers {workers}: {load.answers}, none failed; taken up within {max(taken_s):.1f} s")


async def _until_shown(ports: tuple[int, ...], der: bytes, ca: Path, workers: int) -> float:
    """Wait until new connections to `ports` see `der`, whichever process takes them; the seconds that took."""
    begun = time.monotonic()
    async with asyncio.timeout(60):
        for port in ports:
            # The kernel chooses the worker, so one look is not enough.
            seen = 0
            while seen < 1 if workers == 1 else seen < 8:
                seen = seen + 1 if await asyncio.to_thread(shown_at, port, ca) == der else 0
                await asyncio.sleep(0.02)
    return time.monotonic() - begun


async def _until_counted(http_port: int, ca: Path, result: str, count: int) -> None:
    def counted() -> int:
        context = ssl.create_default_context(cafile=ca)
        connection = http.client.HTTPSConnection("localhost", http_port, context=context, timeout=60)
        try:
            connection.request("GET", "/metrics")
            with connection.getresponse() as answer:
                text = answer.read().decode()
        finally:
            connection.close()
        found = re.search(rf'^fuseline_tls_reloads_total{{result="{result}"}} (\S+)$', text, re.MULTILINE)
        assert found is not None
        return int(float(found[1]))

    async with asyncio.timeout(60):
        while await asyncio.to_thread(counted) < count:  # noqa: ASYNC110 another process counts, and tells no one
            await asyncio.sleep(0.05)
