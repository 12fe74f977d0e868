"""The addresses of gRPC that the workers of a server share."""

import socket
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from fuseline.serve.addresses import claimed_port, first_port, join_address, split_address, unbindable
from fuseline.serve.unix_sockets import is_unix, unix_address
from fuseline.serve.workers.unix_relay import UnixRelay


class SharedAddresses:
    """Holds the server's TCP ports, on which the workers themselves listen, and relays what comes on Unix sockets."""

    def __init__(self, folder: Path, ready_workers: Callable[[], Collection[str]]) -> None:
        """Begin without addresses.

        Each worker has a socket in `folder` for what is relayed; `ready_workers` tells the titles of those that listen.
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
        return self._folder / title.replace(" ", "-")
