"""KServe v2's REST with Triton's binary tensors, to any server that speaks it.

https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_binary_data.md
"""

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fuseline.benchmarks.harness.answers import check_logits
from fuseline.benchmarks.load.protocols import Pictures
from fuseline.serve.errors import VerificationError


@dataclass(frozen=True, slots=True)
class RestInference:
    """uint8 pixels behind a JSON header as the body of a POST to `method`; logits behind one as its answer.

    Every request has as many images, so that all headers are one.
    """

    model: str
    input_name: str
    row_shape: tuple[int, int, int]
    """Height, width, channels."""
    output_name: str
    classes: int
    images: int = 1
    name = "rest"
    is_stream = False

    @property
    def method(self) -> str:
        """Path that requests are posted to."""
        return f"/v2/models/{self.model}/infer"

    @property
    def header(self) -> bytes:
        """What each request's body begins with."""
        shape = [self.images, *self.row_shape]
        source = {
            "name": self.input_name,
            "datatype": "UINT8",
            "shape": shape,
            "parameters": {"binary_data_size": int(np.prod(shape))},
        }
        sink = {"name": self.output_name, "parameters": {"binary_data": True}}
        return json.dumps({"inputs": [source], "outputs": [sink]}, separators=(",", ":")).encode()

    @property
    def fields(self) -> tuple[tuple[str, str], ...]:
        """Fields that each request's head has besides."""
        length = ("Inference-Header-Content-Length", str(len(self.header)))
        return (length, ("Content-Type", "application/octet-stream"))

    def request(self, pictures: Pictures, *, with_logits: bool) -> bytes:
        del with_logits  # the logits are all that there is to ask for
        return self.header + b"".join(map(bytes, pictures))

    def logits(self, answer: bytes) -> NDArray[np.float32]:
        size = 4 * self.images * self.classes
        try:
            (output,) = json.loads(answer[:-size])["outputs"]
            described: dict[str, Any] = {name: output[name] for name in ("name", "datatype", "shape", "parameters")}
        except (ValueError, LookupError, TypeError) as error:
            start = answer[:200]
            raise VerificationError(
                f"{self.output_name} was asked for behind a JSON header, the server gave {start!r}"
            ) from error
        expected = {
            "name": self.output_name,
            "datatype": "FP32",
            "shape": [self.images, self.classes],
            "parameters": {"binary_data_size": size},
        }
        if described != expected:
            raise VerificationError(f"{expected} was asked for, the server gave {described}")
        return np.frombuffer(answer[-size:], "<f4").reshape(self.images, self.classes)

    def check(self, who: str, precision: str, answer: bytes, expected: NDArray[np.float32]) -> None:
        check_logits(who, precision, self.logits(answer), expected)
