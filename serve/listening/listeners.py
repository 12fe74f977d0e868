"""Binds a gRPC server to its addresses."""

from collections.abc import Callable, Sequence

import grpc

from fuseline.serve.listening.addresses import check_bindable, join_address, split_address, unbindable
from fuseline.serve.listening.unix_sockets import is_unix, prepare_unix_address, socket_file


class Listeners:
    """The addresses that a gRPC server listens on. If it was started, its stop removes the files of Unix sockets."""

    def __init__(
        self,
        server: grpc.aio.Server,
        *,
        shares_ports: bool,
        credentials: Callable[[], grpc.ServerCredentials] | None = None,
    ) -> None:
        """With `shares_ports`, other processes of this server listen on its TCP ports too.

        `credentials` returns those of one TCP port; None: they are plain, as Unix sockets always are.
        """
        self._server = server
        self._shares_ports = shares_ports
        self._credentials = credentials
        self._bound: list[str] = []

    def bind(self, addresses: Sequence[str]) -> tuple[str, ...]:
        """Bind to each of `addresses`, and return them with the ports that the system chose for 0.

        Raises:
            InputError: one of them is taken or can't be bound; then none is.
        """
        try:
            for address in addresses:
                self._bound.append(self._bind_unix(address) if is_unix(address) else self._bind_tcp(address))
        except BaseException:
            self.abandon()
            raise
        return tuple(self._bound)

    def abandon(self) -> None:
        """Remove the files of Unix sockets, for a server that is never to stop."""
        for address in self._bound:
            if is_unix(address) and (path := socket_file(address)) is not None:
                path.unlink(missing_ok=True)
        self.forget()

    def forget(self) -> None:
        """Leave the files alone from now on, as the server has stopped: they may be another's."""
        self._bound.clear()

    def _bind_unix(self, address: str) -> str:
        prepare_unix_address(address)
        try:
            self._server.add_insecure_port(address)
        except RuntimeError as error:
            raise unbindable(address, error) from error
        return address

    def _bind_tcp(self, address: str) -> str:
        host, port = split_address(address)
        try:
            if not self._shares_ports:
                check_bindable(host, port)
            if self._credentials is None:
                return join_address(host, self._server.add_insecure_port(address))
            return join_address(host, self._server.add_secure_port(address, self._credentials()))
        except (OSError, RuntimeError) as error:
            raise unbindable(address, error) from error
