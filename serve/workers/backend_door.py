"""The way from the workers to the backend process: a pair of sockets without a name, which the supervisor keeps.

A worker makes a connection, and passes the backend's end of it through the door. So no file and no address is needed,
on a disk that may be full or read-only, and no other process can connect. What waits while no backend process is there
is taken by the next one.
"""

import asyncio
import socket


def backend_door() -> tuple[socket.socket, socket.socket]:
    """Return the door's outer end, which all workers share, and its inner end, the backend's."""
    outer, inner = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    # Flags of a single call won't do: Python 3.11's `send_fds` and `recv_fds` pass none on.
    outer.setblocking(False)
    inner.setblocking(False)
    return outer, inner


def connect_through(outer: socket.socket, memory: int) -> socket.socket:
    """Pass the backend a connection and the descriptor of a worker's memory, which stays the caller's.

    Return the worker's end of the connection. Raises `OSError` if too many wait at the door.
    """
    ours, theirs = socket.socketpair()
    with theirs:
        try:
            socket.send_fds(outer, [b"\0"], [theirs.fileno(), memory])
        except BaseException:
            ours.close()
            raise
    ours.setblocking(False)
    return ours


async def next_through(inner: socket.socket) -> tuple[socket.socket, int]:
    """Return the next connection of a worker, and the descriptor of its memory, both the caller's to close."""
    loop, readable = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(inner, readable.set)
    try:
        await readable.wait()
    finally:
        loop.remove_reader(inner)
    _, (connection, memory), _, _ = socket.recv_fds(inner, 1, 2)
    its = socket.socket(fileno=connection)
    its.setblocking(False)
    return its, memory
