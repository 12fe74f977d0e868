"""Ids of requests: the client's own where they are sound, made ones where something needs them."""

import re
import secrets
from collections.abc import Iterable

REQUEST_ID_KEY = "x-request-id"
"""Key of gRPC metadata, and name of HTTP's header field, in requests and in answers."""

MOST_CHARACTERS = 128
"""Length of the longest id of a client that is kept."""

_SOUND = re.compile(rf"[!-~]{{1,{MOST_CHARACTERS}}}", re.ASCII)
"""Visible ASCII, which logs, header fields and metadata hold as it is."""


def kept_or_made(text: str | bytes) -> str:
    """Return a client's id, or a made one if it is empty, too long, or has other than visible ASCII characters."""
    if isinstance(text, bytes):
        text = text.decode("latin-1")
    return text if _SOUND.fullmatch(text) else made_id()


def made_id() -> str:
    """Return an id that no other request has: 32 hexadecimal digits."""
    return secrets.token_hex(16)


def request_id_of(metadata: Iterable[tuple[str, str | bytes]]) -> str:
    """Return the id of a call with this metadata; empty if it came without one."""
    for key, value in metadata:
        if key == REQUEST_ID_KEY:
            return kept_or_made(value)
    return ""
