"""Making batchers of plain options."""

from dataclasses import fields
from typing import Any

from fuseline.serve.batching.batcher import Batcher
from fuseline.serve.batching.policy import BatchPolicy

_OF_POLICY = {field.name for field in fields(BatchPolicy)}


def batcher_of(infer: Any, **options: Any) -> Batcher:
    """A batcher; `options` are those of its policy and its own."""
    policy = {name: options.pop(name) for name in _OF_POLICY & options.keys()}
    return Batcher(infer, BatchPolicy(**policy), **options)
