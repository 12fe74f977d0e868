"""The certificate that a server shows, which follows its files."""

import asyncio
import logging
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from fuseline.serve.errors import InputError
from fuseline.serve.tls.certificate import Certificate, CertificateFiles, as_date
from fuseline.serve.tls.grpc_credentials import check_grpc_takes

_LOOK_S = 1.0
"""Seconds between two looks at the files. A change is taken up by the second look that sees it."""

_log = logging.getLogger(__name__)


class Certificates:
    """Holds the certificate of the present moment, of which each new handshake takes `current`.

    Files may be renamed into place, overwritten, or swapped by a link. They are read once they have looked the same
    twice, so that a pair that is written one file after the other is not taken for a mismatch. What is broken, or has
    expired while the present one is valid, is never taken: the present one stays, the log says why, once, and
    `failures` counts it.
    """

    def __init__(
        self,
        files: CertificateFiles,
        *,
        copy: CertificateFiles | None = None,
        is_quiet: bool = False,
        now: Callable[[], float] = time.time,
    ) -> None:
        """Read `files`, or, where they are broken now, `copy`, which was sound when they were read last.

        With `is_quiet` nothing is logged: another process of this server does. `now` is the time since the epoch.

        Raises:
            InputError: the files are broken; the message names the flag and the file.
        """
        self._files = files
        self._is_quiet = is_quiet
        self._now = now
        self.reloads = 0
        """How often other files were taken up."""
        self.failures = 0
        """How often files that had changed were not taken up."""
        self._seen = self._taken = files.state()
        try:
            self.current = self._read(files)
        except InputError as error:
            if copy is None:
                raise
            self._fail(error)
            self.current = self._read(copy)
        self._fault = self._said_fault()
        if not is_quiet:
            self._say_loaded("TLS")

    def check(self) -> None:
        """Look at the files, and take them up if they have changed and come to rest. It may wait for the disk."""
        state = self._files.state()
        has_rested = state == self._seen
        self._seen = state
        if has_rested and state != self._taken:
            self._taken = state
            self._reload()
        fault = self.current.fault(self._now())
        if fault != self._fault:
            self._fault = self._said_fault()

    async def watch(self) -> None:
        """Check the files every few seconds, in a thread, until cancelled."""
        while True:
            await asyncio.sleep(_LOOK_S)
            await asyncio.to_thread(self.check)

    def _reload(self) -> None:
        try:
            certificate = self._read(self._files)
            fault = certificate.fault(self._now())
            if fault is not None and self.current.fault(self._now()) is None:
                raise InputError(f"--tls-cert {self._files.certificate} {fault}")
        except InputError as error:
            self._fail(error)
            return
        self.current = certificate
        self.reloads += 1
        self._fault = self._said_fault()
        if not self._is_quiet:
            self._say_loaded("TLS has a new certificate")

    def _read(self, files: CertificateFiles) -> Certificate:
        certificate = files.read()
        check_grpc_takes(certificate, f"--tls-cert {files.certificate}, --tls-key {files.key}")
        return certificate

    def _fail(self, error: InputError) -> None:
        self.failures += 1
        if not self._is_quiet:
            _log.error("%s; the certificate that was read before stays in use", error)

    def _said_fault(self) -> str | None:
        """Return why clients refuse the present certificate, and log it."""
        fault = self.current.fault(self._now())
        if fault is not None and not self._is_quiet:
            _log.error(
                "--tls-cert %s %s: clients refuse this server until the file is replaced",
                self._files.certificate,
                fault,
            )
        return fault

    def _say_loaded(self, what: str) -> None:
        clients = (
            "" if self._files.client_ca is None else f"; clients must show a certificate of {self._files.client_ca}"
        )
        _log.info("%s: %s, valid until %s%s", what, self._files.certificate, as_date(self.current.not_after), clients)
        try:
            is_open = self._files.key_is_open_to_all
        except OSError:
            return  # it is being replaced just now
        if is_open:
            _log.warning(
                "--tls-key %s may be read by every user of this machine; `chmod o-r` mends that", self._files.key
            )


def files_of_descriptors(descriptors: Sequence[int]) -> CertificateFiles:
    """Return the paths of what `copied_in_memory` returned, in a process that inherited it."""
    return CertificateFiles(*(Path(f"/proc/self/fd/{descriptor}") for descriptor in descriptors))


def copied_in_memory(certificate: Certificate) -> list[int]:
    """Return descriptors of files in memory with the chain, the key and, where there is one, the clients' CA.

    The caller closes them. `files_of_descriptors` names them in a process that has them.
    """
    files: list[int] = []
    try:
        for part in (certificate.chain_pem, certificate.key_pem, certificate.client_ca_pem):
            if part is not None:
                files.append(os.memfd_create("fuseline-tls"))
                with os.fdopen(files[-1], "wb", closefd=False) as file:
                    file.write(part)
    except BaseException:
        for descriptor in files:
            os.close(descriptor)
        raise
    return files
