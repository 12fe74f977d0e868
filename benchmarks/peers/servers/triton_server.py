"""NVIDIA Triton with its Python backend.

`python triton_server.py MODEL.onnx GRPC_PORT HTTP_PORT THREADS QUEUE_US RESIZE`

Serves the model `model` by the Open Inference Protocol on 127.0.0.1. Triton forms the batches, of up to 32 rows, and
waits for them for up to 1 ms. With QUEUE_US above 0 it rejects a request that has waited so many microseconds, or what
its parameter `timeout` says if that is less; with 0 requests wait however long it takes. With RESIZE above 0
its input is JPEG files, which are decoded, their shorter side resized to RESIZE, and cropped. Ends on SIGINT. Needs
nvidia-pytriton, which has tritonserver in it, and a Python whose libpython is a shared library.
"""

import secrets
import sys
from typing import Any

import numpy as np
from jpeg_decoder import open_decoder  # type: ignore[import-not-found]
from onnx_engine import open_engine  # type: ignore[import-not-found]
from pytriton.decorators import batch  # type: ignore[import-not-found]
from pytriton.model_config import (  # type: ignore[import-not-found]
    DynamicBatcher,
    ModelConfig,
    QueuePolicy,
    Tensor,
    TimeoutAction,
)
from pytriton.triton import Triton, TritonConfig, TritonSecurityConfig  # type: ignore[import-not-found]

_MAX_BATCH = 32
_MAX_DELAY_US = 1000


def _main(graph: str, grpc_port: int, http_port: int, threads: int, queue_us: int, resize: int) -> None:
    engine = open_engine(graph, threads)
    decode = open_decoder(engine.row_shape[0], resize) if resize else None
    pixels = Tensor(name=engine.input_name, dtype=np.uint8, shape=engine.row_shape)
    files = Tensor(name=engine.input_name, dtype=bytes, shape=(1,))

    @batch  # type: ignore[untyped-decorator]
    def infer(**inputs: Any) -> dict[str, Any]:
        pictures = inputs[engine.input_name]
        return {engine.output_name: engine.infer(decode(pictures[:, 0]) if decode else pictures)}

    config = TritonConfig(
        grpc_address="127.0.0.1",
        grpc_port=grpc_port,
        http_address="127.0.0.1",
        http_port=http_port,
        allow_metrics=False,
    )
    policy = QueuePolicy(TimeoutAction.REJECT, default_timeout_microseconds=queue_us, allow_timeout_override=True)
    # The token guards the endpoints that load and unload models, which nobody needs here. By default it would guard
    # those of shared memory too.
    security = TritonSecurityConfig(access_token=secrets.token_hex(), restricted_endpoints=["model-repository"])
    with Triton(config=config, security_config=security) as triton:
        triton.bind(
            model_name="model",
            infer_func=infer,
            inputs=[files if decode else pixels],
            outputs=[Tensor(name=engine.output_name, dtype=np.float32, shape=(engine.classes,))],
            config=ModelConfig(
                batching=True,
                max_batch_size=_MAX_BATCH,
                batcher=DynamicBatcher(
                    max_queue_delay_microseconds=_MAX_DELAY_US, default_queue_policy=policy if queue_us else None
                ),
            ),
            strict=False,
        )
        triton.serve()


if __name__ == "__main__":
    _main(sys.argv[1], *map(int, sys.argv[2:7]))
