"""Reads from a built engine the precision in which it holds its weights. This needs a GPU."""

import json
from collections import Counter
from collections.abc import Collection
from typing import Any

from fuseline.serve.backends.engine.library import title
from fuseline.serve.errors import VerificationError
from fuseline.serve.precision import LEAST_SHARE, PrecisionName, precision_of_type


def weights_by_precision(engine: Any, trt: Any) -> dict[str, int]:
    """Return the number of weights that `engine` holds in each precision (`fp16`), by its inspector; may be empty.

    The inspector reports only on engines that were built with `ProfilingVerbosity.DETAILED`, as
    `fuseline.serve.backends.engine.builder` builds them: each layer that carries weights has `"Weights": {"Type":
    "Half", "Count": 9408}` (NVIDIA, TensorRT documentation, "Engine Inspector").
    """
    information = engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON)
    counts: Counter[str] = Counter()
    for layer in json.loads(information).get("Layers", []):
        match layer:
            case {"Weights": {"Type": str(kind), "Count": int(count)}}:
                counts[precision_of_type(kind)] += count
    return dict(counts)


def check_inspected(engine: Any, trt: Any, precision: PrecisionName, *, kept_fp32: Collection[str]) -> dict[str, int]:
    """Check that `engine` holds its weights in the `precision` of its graph; return `weights_by_precision`.

    Args:
        kept_fp32: the graph's nodes that are FP32 on purpose. If there are any, it suffices that some weights are in
            `precision`.

    Raises:
        VerificationError: too few weights are in `precision`. TensorRT has built FP32 where FP16 was asked for.
    """
    weights = weights_by_precision(engine, trt)
    total = sum(weights.values())
    share = weights.get(precision, 0) / total if total else 1.0
    if share == 0 or (share < LEAST_SHARE and not kept_fp32):
        found = ", ".join(f"{count:,} in {name}" for name, count in sorted(weights.items()))
        raise VerificationError(
            f"{title(trt)} was given an {precision} graph, but by its own inspector the engine holds {found} of "
            f"{total:,} weights; at least {LEAST_SHARE:.0%} were expected in {precision}. Another build of the library "
            "may do better; --backend onnxruntime computes as the graph says"
        )
    return weights
