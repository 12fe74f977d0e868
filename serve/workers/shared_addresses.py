"""The addresses of gRPC that the workers of a server share."""

import os
import socket
import tempfile
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from fuseline.serve.errors import InputError
from fuseline.serve.listening.addresses import claimed_port, first_port, join_address, split_address, unbindable
from fuseline.serve.listening.unix_sockets import MAX_PATH_BYTES, is_unix, socket_file, unix_address
from fuseline.serve.workers.unix_relay import UnixRelay

_MOST_FILE_BYTES = len("/worker-99999")


class SharedAddresses:
    """Holds the server's TCP ports, on which the workers themselves listen, and relays what comes on Unix sockets."""

    def __init__(self, folder: Path | None, ready_workers: Callable[[], Collection[str]]) -> None:
        """Begin without addresses.

        Each worker has a socket in `folder`, as `new_socket_folder` makes it, for what is relayed; `ready_workers`
        tells the titles of those that listen.
        """
        self.addresses: tuple[str, ...] = ()
        """Addresses that were taken, with the ports that the system chose for 0."""
        self._folder = folder
        self._claims: list[socket.socket] = []
        self._relay = UnixRelay(lambda: [self._socket_of(title) for title in ready_workers()])

    @property
    def port(self) -> int:
        """The first TCP port; 0: none."""
        return first_port(self.addresses)

    def take(self, addresses: Sequence[str]) -> None:
        """Take `addresses` for the workers.

        Raises:
            InputError: one of them is taken already or can't be bound.
        """
        for address in addresses:
            taken = self._relay.listen(address) if is_unix(address) else self._claimed(address)
            self.addresses = (*self.addresses, taken)

    def of_worker(self, title: str) -> tuple[str, ...]:
        """Return the addresses that the worker called `title` is to listen on."""
        shared = tuple(address for address in self.addresses if not is_unix(address))
        return shared if shared == self.addresses else (*shared, unix_address(self._socket_of(title)))

    async def start(self) -> None:
        """Relay what comes on Unix sockets from now on; until then it waits."""
        await self._relay.start()

    async def finish(self) -> None:
        """Return once what the workers, which have ended, have sent is delivered, or some seconds later."""
        await self._relay.finish()

    def close(self) -> None:
        """Free the addresses, after the workers have ended."""
        self._relay.close()
        for claim in self._claims:
            claim.close()

    def _claimed(self, address: str) -> str:
        host, port = split_address(address)
        try:
            claim = claimed_port(host, port)
        except OSError as error:
            raise unbindable(address, error) from error
        self._claims.append(claim)
        return join_address(host, claim.getsockname()[1])

    def _socket_of(self, title: str) -> Path:
        assert self._folder is not None
        return self._folder / title.replace(" ", "-")


def new_socket_folder(addresses: Sequence[str]) -> Path | None:
    """Make a folder for the sockets of workers, which no other user may enter; None: `addresses` has no Unix socket.

    It lies beside the temporary files, or where that can't be, beside the sockets of `addresses`.

    Raises:
        InputError: neither can be written to, or their paths are too long for sockets.
    """
    if not any(map(is_unix, addresses)):
        return None
    files = [file for address in addresses if (file := socket_file(address) if is_unix(address) else None) is not None]
    reasons = []
    for parent in (None, *(file.absolute().parent for file in files)):
        try:
            folder = Path(tempfile.mkdtemp(prefix=".fuseline-" if parent else "fuseline-", dir=parent))
        except OSError as error:
            reasons.append(f"{parent or 'temporary files'}: {error.strerror}")
            continue
        if len(os.fsencode(folder)) + _MOST_FILE_BYTES <= MAX_PATH_BYTES:
            return folder
        folder.rmdir()
        reasons.append(f"{folder.parent}: a socket's path may have {MAX_PATH_BYTES} bytes")
    raise InputError(
        f"with --workers, Unix sockets need a folder for those of the workers, and none can be made "
        f"({'; '.join(reasons)}); set TMPDIR to a folder that can be written to, or serve from one process"
    )
