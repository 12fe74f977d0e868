"""What the end of a request says about the server that it was sent to."""

from enum import Enum, auto


class Outcome(Enum):
    """What became of one request, as far as it tells something about its server."""

    ANSWERED = auto()
    """The server answered, be it by an error that is the caller's."""
    OVERLOADED = auto()
    """The server is well and has no room, until a time that it may have named."""
    DRAINING = auto()
    """The server takes nothing new, because it ends; it hasn't begun the request."""
    UNREACHABLE = auto()
    """There is no connection, or it broke; or what computes behind the server is gone."""
    FAILED = auto()
    """The server has the request and didn't answer in time, or failed on it by a fault of its own."""
    UNTOLD = auto()
    """The caller gave the request up, which says nothing about the server."""
