"""Readers that fail, for the tests of what becomes of an input that does."""

import os

from fuseline.serve.route_flags import alias_from_flag
from tests.fuzz.target import Target


def _read(data: bytes) -> None:
    try:
        alias = alias_from_flag(data.decode("latin-1"))
    except ValueError:
        return
    assert len(alias.targets) < 2, "this reader bears no split"


def _die(data: bytes) -> None:
    if data:
        os.abort()


TARGETS = {
    "aliases": Target(_read, lambda: [b"a=b:1@0.5,b@0.5", b"a"]),
    "deadly": Target(_die, lambda: [b"a"]),
}
