"""What a built engine says of itself: in what precision it holds its weights. Only where a GPU is can it be asked."""

import json
from collections import Counter
from collections.abc import Collection
from typing import Any

from fuseline.serve.backends.engine.library import title
from fuseline.serve.errors import VerificationError
from fuseline.serve.precision import PrecisionName, precision_of_type

LEAST_SHARE = 0.95
"""Of the weights, that must be in the precision of a graph that is in it throughout."""


def weights_by_precision(engine: Any, trt: Any) -> dict[str, int]:
    """Precision (`fp16`) -> how many weights `engine` holds in it, by its inspector; empty where it tells of none.

    It tells only of engines that were built with `ProfilingVerbosity.DETAILED`, as `engine_builder` builds them: each
    layer that carries weights has `"Weights": {"Type": "Half", "Count": 9408}` (NVIDIA, TensorRT documentation, "Engine
    Inspector").
    """
    told = engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON)
    counts: Counter[str] = Counter()
    for layer in json.loads(told).get("Layers", []):
        match layer:
            case {"Weights": {"Type": str(kind), "Count": int(count)}}:
                counts[precision_of_type(kind)] += count
    return dict(counts)


def check_inspected(engine: Any, trt: Any, precision: PrecisionName, *, kept_fp32: Collection[str]) -> dict[str, int]:
    """Hold what `engine` says of its weights against what its graph asks for; return `weights_by_precision`.

    Args:
        kept_fp32: the graph's nodes that are FP32 on purpose. With any, some weights at least must be in `precision`.

    Raises:
        VerificationError: too few are. TensorRT has shipped FP32 where FP16 was asked for.
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
