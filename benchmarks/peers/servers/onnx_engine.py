"""The engine behind every peer: ONNX Runtime on the CPU, with the session options that Fuseline serves with.

This folder's programs run in the peers' own environments, so they import nothing of Fuseline; the options are those of
`fuseline.serve.backends.onnxruntime.open_session`, and a test holds the two together.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime as ort

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class Engine:
    """A loaded graph with one input and one output, both batched."""

    infer: Callable[[Array], Array]
    """uint8 pixels (rows, *row_shape) to float32 logits (rows, classes)."""
    input_name: str
    output_name: str
    row_shape: tuple[int, ...]
    classes: int


def open_engine(graph: str, threads: int) -> Engine:
    """Load the ONNX file `graph`, which takes uint8 pixels; `threads` 0 leaves their number to ONNX Runtime."""
    session = ort.InferenceSession(graph, session_options(threads), providers=["CPUExecutionProvider"])
    (source,), (target,) = session.get_inputs(), session.get_outputs()
    if source.type != "tensor(uint8)":
        raise SystemExit(f"{graph} takes {source.type}; expected tensor(uint8), as in a package of Fuseline's")

    def infer(pixels: Array) -> Array:
        logits: Array = session.run([target.name], {source.name: pixels})[0]
        return logits

    return Engine(infer, source.name, target.name, tuple(source.shape[1:]), target.shape[-1])


def session_options(threads: int) -> Any:
    """As for serving, on a CPU with INT8 products: only FP32 is compared."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    options.enable_mem_pattern = False
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options
