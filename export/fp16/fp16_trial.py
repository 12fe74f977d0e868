"""How far a choice of layers in FP16 moves the logits, as a GPU would compute them."""

from collections.abc import Callable, Collection

import numpy as np
import onnx
from numpy.typing import NDArray

from fuseline.export.fp16.float_nodes import FloatNodes
from fuseline.export.fp16.fp16_graph import fp16_from_fp32, with_unweighted_behind
from fuseline.export.fp16.stored_in_fp16 import stored_in_fp16
from fuseline.export.graph.runtimes import onnxruntime_logits


class Fp16Trial:
    """An FP32 graph, images, and its logits for them, which FP16 is held against."""

    def __init__(
        self, model: onnx.ModelProto, nodes: FloatNodes, pixels: NDArray[np.uint8], logits: NDArray[np.float32]
    ) -> None:
        self._model, self._nodes, self._pixels, self._logits = model, nodes, pixels, logits

    def deviation(self, kept: Collection[str], on_progress: Callable[[float], None] = lambda _: None) -> float:
        """Largest difference of a logit from FP32's, as a share of their range, of the graph that keeps `kept` in FP32.

        Infinite where FP16 gives NaN or infinity.
        """
        return self._deviation(with_unweighted_behind(self._nodes, kept), on_progress)

    def deviation_of(self, fp16_nodes: Collection[str]) -> float:
        """The same with only `fp16_nodes` in FP16, whatever they read."""
        return self._deviation({node.name for node in self._nodes.nodes} - set(fp16_nodes))

    def _deviation(self, fp32_nodes: Collection[str], on_progress: Callable[[float], None] = lambda _: None) -> float:
        logits = onnxruntime_logits(stored_in_fp16(fp16_from_fp32(self._model, fp32_nodes)), self._pixels, on_progress)
        difference = float(np.abs(logits.astype(np.float64) - self._logits).max())
        if difference == 0:
            return 0.0
        spread = float(self._logits.max() - self._logits.min())
        return difference / spread if np.isfinite(difference) and spread else np.inf
