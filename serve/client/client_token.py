"""The token that a client sends, and where it must not go."""

import os
import re
from pathlib import Path
from urllib.parse import urlsplit

from fuseline.serve.errors import InputError
from fuseline.serve.listening.addresses import is_local

TOKEN_VARIABLE = "FUSELINE_TOKEN"  # noqa: S105 the variable's name
_TOKEN = re.compile(r"[!-~]+")
_MOST_BYTES = 4096


def token_for(address: str, token: str | None, *, is_encrypted: bool, in_clear: bool) -> str | None:
    """Return the token for calls to `address`: `token`, or else that of the variable FUSELINE_TOKEN; None: neither is.

    Raises:
        InputError: it is none, or it would leave this machine over a connection that is not encrypted, where anyone on
            the way can read it. With `in_clear` it may, as where a proxy on this machine encrypts.
    """
    if token is None:
        token = os.environ.get(TOKEN_VARIABLE) or None
    if token is None:
        return None
    if not _TOKEN.fullmatch(token):
        raise InputError("the token holds spaces, line ends or characters that are not ASCII; give the token alone")
    host = (urlsplit(address).hostname or "") if "://" in address else address
    if not (is_encrypted or in_clear or is_local(host)):
        raise InputError(
            f"the token would go to {address} unencrypted, to be read by anyone on the way; connect by TLS, or allow "
            "it by token_in_clear=True (--token-in-clear) where something else encrypts"
        )
    return token


def token_in_file(path: Path) -> str:
    """Return the token that is all of the file `path`, but for white space around it.

    Raises:
        InputError: it can't be read, or is too large to be one.
    """
    try:
        with path.open("rb") as file:
            content = file.read(_MOST_BYTES + 1)
    except OSError as error:
        raise InputError(f"the token file {path} can't be read: {error.strerror}") from error
    token = content.decode("latin-1").strip()
    if not token or len(content) > _MOST_BYTES:
        raise InputError(f"the token file {path} holds no token; expected nothing but the token in it")
    return token


def metadata_with(token: str | None) -> tuple[tuple[str, str], ...]:
    """Return the metadata of a gRPC call with `token`."""
    return () if token is None else (("authorization", f"Bearer {token}"),)
