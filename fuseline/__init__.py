"""Fuseline from Python. A name is imported when it is asked for: neither torch nor gRPC before."""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fuseline.serve.client import Client

__all__ = ["Client"]

_MODULE_OF_NAME = {"Client": "fuseline.serve.client"}


def __getattr__(name: str) -> object:
    """Import a public name when it is asked for."""
    if name in _MODULE_OF_NAME:
        return getattr(importlib.import_module(_MODULE_OF_NAME[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
