"""Lets calls in by their token, for every door of a server."""

import hmac
import logging
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from fuseline.serve.access.roles import Role
from fuseline.serve.access.token_file import TokenLine, digest_of, read_token_file, token_lines
from fuseline.serve.errors import ForbiddenError, FuselineError, InputError, UnauthenticatedError

_LOOK_EVERY_S = 1.0
"""Seconds after which the file is read again, if there is a call."""

_SET_BACK_S = 60.0
"""Seconds by which the wall clock must be behind what it was before it is told of."""

_log = logging.getLogger(__name__)


class Identity(NamedTuple):
    """Who makes a call."""

    name: str
    role: Role

    @property
    def client(self) -> str:
        """Name of the client for queues and limits, which no peer's address can be."""
        return f"token:{self.name}"


class Pass(NamedTuple):
    """What a call that goes on, a stream, was let in by."""

    digest: bytes
    """SHA-256 of its token."""
    needed: Role
    what: str
    """Name of the method, for the error."""


class Gate:
    """Knows the tokens of a file, and reads it again when it has changed; while it is broken, the old ones hold.

    A token that has expired stays so if the wall clock is set back. Any thread may call it. No token is kept, logged or
    part of an error.
    """

    def __init__(
        self,
        path: Path,
        count: Callable[[str], None] = lambda _: None,
        *,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
    ) -> None:
        """Read the file. `count` counts events: `token_file_broken`, `unauthenticated`, `forbidden`, `stream_ended`.

        `clock` says when the file is looked at, `now` which tokens have expired. Raises `InputError`.
        """
        self._path = path
        self.count = count
        """Counts an event, by any thread."""
        self._clock = clock
        self._now = now
        self._ahead = now() - clock()
        self._is_set_back = False
        self._content = read_token_file(path)
        self._lines = _by_digest(token_lines(self._content, path))
        self._broken: str | None = None
        self._look_at = clock() + _LOOK_EVERY_S

    def identify(self, authorization: list[str]) -> Identity:
        """Return who has the token in a call's `authorization`: the values of that header or metadata.

        Takes the same time whichever of the tokens it is, or none. Raises `UnauthenticatedError`.
        """
        self._look_if_due()
        try:
            return self._identity(authorization)
        except UnauthenticatedError:
            self.count("unauthenticated")
            raise

    def check(self, identity: Identity, needed: Role | None, what: str) -> None:
        """Raise `ForbiddenError` unless `identity` may do `what`, which needs the role `needed`."""
        if needed is not None and not identity.role.allows(needed):
            self.count("forbidden")
            raise _forbidden(identity, needed, what)

    def unknown(self, what: str) -> ForbiddenError:
        """Return the error of a call of a method that is not in the table of roles."""
        self.count("forbidden")
        return ForbiddenError(f"{what} is in no role, so no token allows it")

    def pass_of(self, authorization: list[str], needed: Role, what: str) -> Pass:
        """Return what a call of `what` is let in by, whose `authorization` was identified and has the role `needed`."""
        digest = _digest(authorization)
        assert digest is not None
        return Pass(digest, needed, what)

    def refusal(self, held: Pass) -> FuselineError | None:
        """Return why a call that was let in by `held` would be let in no longer; None: it would be."""
        self._look_if_due()
        line = self._lines.get(held.digest)
        if line is None:
            return UnauthenticatedError("the token that opened this stream has been withdrawn: get a new one")
        if self._has_expired(line):
            return _expired(line)
        if not line.role.allows(held.needed):
            return _forbidden(Identity(line.name, line.role), held.needed, held.what)
        return None

    def _identity(self, authorization: list[str]) -> Identity:
        if not authorization:
            raise UnauthenticatedError(
                "this call needs a token, which whoever runs the server has; send it as `authorization: Bearer TOKEN`, "
                "as Client(token=...) and the variable FUSELINE_TOKEN do"
            )
        digest = _digest(authorization)
        found: TokenLine | None = None
        if digest is not None:
            # Each is compared, so that the time tells nothing.
            for line in self._lines.values():
                if hmac.compare_digest(digest, line.digest):
                    found = line
        if found is None:
            raise UnauthenticatedError("this server doesn't know the token; it may have been withdrawn: get a new one")
        if self._has_expired(found):
            raise _expired(found)
        return Identity(found.name, found.role)

    def _has_expired(self, line: TokenLine) -> bool:
        if line.expires is None:
            return False
        # The wall clock, but for its steps back: it is the monotonic one plus the most by which it was ever ahead.
        clock, now = self._clock(), self._now()
        self._ahead = max(self._ahead, now - clock)
        instant = clock + self._ahead
        is_set_back = instant - now > _SET_BACK_S
        if is_set_back and not self._is_set_back:
            _log.warning(
                "the wall clock was set back by %.0f s; tokens expire by what it was before, so that none is taken "
                "again. If it was wrong before, start the server again",
                instant - now,
            )
        self._is_set_back = is_set_back
        return instant >= line.expires.timestamp()

    def _look_if_due(self) -> None:
        if self._clock() >= self._look_at:
            self._look_again()

    def _look_again(self) -> None:
        self._look_at = self._clock() + _LOOK_EVERY_S
        try:
            # Its times and size don't always tell a change, and reading some KiB takes microseconds.
            content = read_token_file(self._path)
            if content == self._content and self._broken is None:
                return
            lines = _by_digest(token_lines(content, self._path))
        except InputError as error:
            if str(error) != self._broken:
                self._broken = str(error)
                self.count("token_file_broken")
                _log.error("%s; the tokens that were known before are still taken", error)
            return
        if content != self._content:
            _log.info("the file of token hashes %s has changed; it has %d tokens", self._path, len(lines))
        self._broken, self._content, self._lines = None, content, lines


def _by_digest(lines: Iterable[TokenLine]) -> dict[bytes, TokenLine]:
    return {line.digest: line for line in lines}


def _digest(authorization: list[str]) -> bytes | None:
    """Return the digest of the one token in `authorization`; None if it has not the form of one.

    Raises `UnauthenticatedError` for another scheme.
    """
    scheme, _, token = authorization[0].partition(" ")
    if len(authorization) > 1 or scheme.lower() != "bearer":
        raise UnauthenticatedError("one `authorization: Bearer TOKEN` was expected, and came otherwise")
    return digest_of(token.strip())


def _expired(line: TokenLine) -> UnauthenticatedError:
    assert line.expires is not None
    return UnauthenticatedError(f"the token of {line.name!r} expired at {line.expires.isoformat()}; get a new one")


def _forbidden(identity: Identity, needed: Role, what: str) -> ForbiddenError:
    return ForbiddenError(
        f"{what} needs a token of the role {needed}; that of {identity.name!r} has the role {identity.role}"
    )
