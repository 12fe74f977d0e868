"""What the unmodified tritonclient's four clients get over mutual TLS. Run by .venv-tritonclient; see triton_common.

`FOLDER/tls` has ca.pem, client.pem and client.key.
"""

import asyncio
import json
import ssl
import sys
from pathlib import Path
from typing import Any

import gevent.ssl
import numpy as np
import tritonclient.grpc as triton_grpc
import tritonclient.grpc.aio as triton_grpc_aio
import tritonclient.http as triton_http
import tritonclient.http.aio as triton_http_aio
from triton_common import MODEL, logits_of


def main(grpc_address: str, http_address: str, pixels: Any, tls: Path) -> dict[str, Any]:
    ca, cert, key = (str(tls / name) for name in ("ca.pem", "client.pem", "client.key"))
    over_grpc = {"ssl": True, "root_certificates": ca, "private_key": key, "certificate_chain": cert}
    seen: dict[str, Any] = {}
    with triton_grpc.InferenceServerClient(grpc_address, **over_grpc) as client:
        seen["grpc"] = logits_of(client.infer(MODEL, [_filled(triton_grpc, pixels)]))
        seen["grpc ready"] = client.is_model_ready(MODEL)
    options = {"ca_certs": ca, "certfile": cert, "keyfile": key}

    def context(**its: Any) -> Any:
        made = gevent.ssl.create_default_context(cafile=its["ca_certs"])
        made.load_cert_chain(its["certfile"], its["keyfile"])
        return made

    client = triton_http.InferenceServerClient(
        http_address, ssl=True, ssl_options=options, ssl_context_factory=lambda: context(**options)
    )
    seen["http"] = logits_of(client.infer(MODEL, [_filled(triton_http, pixels)]))
    seen["http ready"] = client.is_model_ready(MODEL)
    client.close()
    seen |= asyncio.run(_asynchronous(grpc_address, http_address, pixels, over_grpc, options))
    return seen


async def _asynchronous(
    grpc_address: str, http_address: str, pixels: Any, over_grpc: dict[str, Any], options: dict[str, str]
) -> dict[str, Any]:
    seen = {}
    async with triton_grpc_aio.InferenceServerClient(grpc_address, **over_grpc) as client:
        seen["grpc.aio"] = logits_of(await client.infer(MODEL, [_filled(triton_grpc_aio, pixels)]))
    context = ssl.create_default_context(cafile=options["ca_certs"])
    context.load_cert_chain(options["certfile"], options["keyfile"])
    async with triton_http_aio.InferenceServerClient(http_address, ssl=True, ssl_context=context) as client:
        seen["http.aio"] = logits_of(await client.infer(MODEL, [_filled(triton_http_aio, pixels)]))
    return seen


def _filled(library: Any, pixels: Any) -> Any:
    tensor = library.InferInput("image", list(pixels.shape), "UINT8")
    tensor.set_data_from_numpy(pixels)
    return tensor


if __name__ == "__main__":
    its_folder = Path(sys.argv[3])
    json.dump(main(sys.argv[1], sys.argv[2], np.load(its_folder / "pixels.npy"), its_folder / "tls"), sys.stdout)
