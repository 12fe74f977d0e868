"""Batchers made of plain options."""

from dataclasses import fields
from typing import Any

from fuseline.serve.batching.batcher import Batcher
from fuseline.serve.batching.policy import BatchPolicy

_OF_POLICY = {field.name for field in fields(BatchPolicy)} - {"lanes"}


def batcher_of(infer: Any, **options: Any) -> Batcher:
    """Return a batcher of `infer`; `options` are the fields of its `BatchPolicy` and its own keyword arguments.

    The option `lanes` is the batcher's, and tells the policy how many there are.
    """
    policy = {name: options.pop(name) for name in _OF_POLICY & options.keys()}
    return Batcher(infer, BatchPolicy(lanes=len(options.get("lanes") or [infer]), **policy), **options)
