"""Bearer tokens, and the file in which a server keeps their hashes.

    # NAME      ROLE   HASH                    EXPIRES (optional)
    web-shop    infer  sha256:9f86d081884c…    2027-01-31T00:00:00+00:00
    deployer    admin  sha256:60303ae22b99…

A name may have several lines, so that a client's next token is taken before its last one is given up.
"""

import hashlib
import os
import re
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from reprlib import repr as shortened

from fuseline.serve.access.roles import Role
from fuseline.serve.errors import InputError

_PREFIX = "fuseline_"
"""Beginning of every token, by which scanners for secrets find one that was committed somewhere."""
_TOKEN_BYTES = 32
_TOKEN = re.compile(rf"{_PREFIX}[A-Za-z0-9_-]{{43}}")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")
_HASH = re.compile(r"sha256:([0-9a-f]{64})")
_MOST_BYTES = 2**18
"""Largest file: some 2,000 lines. Each costs a call a third of a microsecond."""


@dataclass(frozen=True, slots=True)
class TokenLine:
    """What a server knows of one token."""

    name: str
    """Name of who has the token."""
    role: Role
    digest: bytes
    """SHA-256 of the token."""
    expires: datetime | None = None
    """When the token is no longer taken; None: never."""

    def __str__(self) -> str:
        """Return the line of the file."""
        end = "" if self.expires is None else f" {self.expires.isoformat()}"
        return f"{self.name} {self.role} sha256:{self.digest.hex()}{end}"


def new_token() -> str:
    """Return a new token: 256 random bits of the system's, in base64url."""
    return _PREFIX + secrets.token_urlsafe(_TOKEN_BYTES)


def digest_of(token: str) -> bytes | None:
    """Return the SHA-256 of `token`, 32 bytes; None if it hasn't the form of one that `new_token` makes.

    A slow or salted hash would guard nothing here. They are for words that people choose, of which a thief of the file
    could try the likely ones; a token has 256 random bits, and nothing else than a token is hashed.
    """
    return hashlib.sha256(token.encode()).digest() if _TOKEN.fullmatch(token) else None


def token_line(token: str, *, name: str, role: str, expires: datetime | None = None) -> TokenLine:
    """Return the line for a token of `new_token`.

    Raises:
        InputError: the name or the role is none.
    """
    digest = digest_of(token)
    assert digest is not None
    try:
        return _line(name, role, f"sha256:{digest.hex()}", *(() if expires is None else (expires.isoformat(),)))
    except ValueError as error:
        raise InputError(str(error)) from error


def read_token_file(path: Path) -> bytes:
    """Return the content of a file of hashes.

    Raises:
        InputError: it can't be read, or is too large.
    """
    try:
        with path.open("rb") as file:
            content = file.read(_MOST_BYTES + 1)
    except OSError as error:
        raise InputError(f"the file of token hashes {path} can't be read: {error.strerror}") from error
    if len(content) > _MOST_BYTES:
        raise InputError(f"the file of token hashes {path} has more than {_MOST_BYTES} bytes; remove old lines")
    return content


def token_lines(content: bytes, path: Path) -> tuple[TokenLine, ...]:
    """Return what the lines of the file `path` say.

    Raises:
        InputError: a line is malformed, two have one hash, or there is none. The message never holds a line's words:
            someone may have put a token there by mistake.
    """
    lines: dict[bytes, TokenLine] = {}
    for number, words in _words(content, path):
        try:
            line = _line(*words)
            if line.digest in lines:
                raise ValueError("its hash is that of an earlier line")
        except (TypeError, ValueError) as error:
            reason = _FORM if isinstance(error, TypeError) else error
            raise InputError(f"line {number} of the file of token hashes {path}: {reason}") from error
        lines[line.digest] = line
    if not lines:
        raise InputError(f"the file of token hashes {path} has no token; `fuseline token new --file {path}` adds one")
    return tuple(lines.values())


def add_line(path: Path, line: TokenLine) -> None:
    """Add `line` to the file, or make it, readable by its owner alone. A server that reads it meanwhile sees it whole.

    Raises:
        InputError: the file is none of hashes, or can't be written.
    """
    content = b""
    if path.exists():
        content = read_token_file(path)
        if list(_words(content, path)):
            token_lines(content, path)
    if content and not content.endswith(b"\n"):
        content += b"\n"
    target = path.resolve()
    try:
        descriptor, written = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(content + f"{line}\n".encode())
                file.flush()
                os.fsync(file.fileno())
                if target.exists():
                    # A server of another user must still be able to read it.
                    os.fchmod(file.fileno(), target.stat().st_mode & 0o7777)
            Path(written).replace(target)
        except BaseException:
            with suppress(OSError):
                Path(written).unlink()
            raise
    except OSError as error:
        raise InputError(f"the file of token hashes {path} can't be written: {error.strerror}") from error


_FORM = "expected NAME ROLE sha256:HASH [EXPIRES], as `fuseline token new` writes it"


def _words(content: bytes, path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield the words of each line that has a token, with its number. Raises `InputError` for what is no text."""
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        raise InputError(f"the file of token hashes {path} is no UTF-8 text") from error
    for number, line in enumerate(text.splitlines(), 1):
        words = line.split()
        if words and not words[0].startswith("#"):
            yield number, words


def _line(name: str, role: str, hash: str, expires: str | None = None) -> TokenLine:
    """Raise `ValueError` where a word is wrong."""
    # A name is told and logged, so it must not be a token that came into the wrong column.
    if not _NAME.fullmatch(name) or name.startswith(_PREFIX):
        raise ValueError(
            "a name has 1 to 64 letters, digits and . _ @ -, and begins with a letter or a digit, but not with "
            f"{_PREFIX}, as tokens do"
        )
    if role not in tuple(Role):
        raise ValueError(f"the role must be {' or '.join(Role)}")
    found = _HASH.fullmatch(hash)
    if found is None:
        raise ValueError(_FORM)
    return TokenLine(name, Role(role), bytes.fromhex(found[1]), None if expires is None else _instant(expires))


def _instant(text: str) -> datetime:
    try:
        instant = datetime.fromisoformat(text)
    except ValueError as error:
        raise ValueError("the time at the end is none of ISO 8601, such as 2027-01-31T00:00:00+00:00") from error
    if instant.tzinfo is None:
        raise ValueError(f"the time {shortened(text)} has no offset; add +00:00 for UTC")
    return instant
