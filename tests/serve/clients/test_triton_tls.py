"""Mutual TLS, by the unmodified tritonclient's four clients."""

from pathlib import Path

import numpy as np
import pytest

from tests.fakes.colours import noise, write_colours_package
from tests.serve.certificates import Authority
from tests.serve.clients.conftest import Offer, logits_by_the_backend, wrong
from tests.serve.processes import FAST, free_port, server_process


@pytest.mark.slow
def test_all_clients_of_triton_are_answered_over_mutual_tls(tmp_path: Path) -> None:
    pixels = noise(5)
    np.save(tmp_path / "pixels.npy", pixels)
    authority = Authority(tmp_path / "tls")
    authority.issue("client", names=("pictures.example",))
    package = write_colours_package(tmp_path / "colours")
    flags = (*authority.issue().flags, "--tls-client-ca", authority.ca, "--http-port", free_port())
    logits, _ = logits_by_the_backend(package, pixels, [])
    with server_process(package, *FAST, *flags) as server:
        seen = Offer(server, tmp_path, logits, logits).seen_by(".venv-tritonclient", "triton_tls_calls.py")
    assert (seen.pop("grpc ready"), seen.pop("http ready")) == (True, True)
    assert sorted(seen) == ["grpc", "grpc.aio", "http", "http.aio"]
    assert wrong(seen, logits) == {}
