"""Run by the Python of .venv-tritonclient: loads, unloads and lists models, by tritonclient's clients.

`python triton_repository_calls.py GRPC HTTP`
"""

import json
import sys
from typing import Any

import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
from triton_common import outcome

NAME = "cats"


def main(grpc_address: str, http_address: str) -> dict[str, Any]:
    with triton_grpc.InferenceServerClient(grpc_address) as client:
        over_grpc = _seen(client, lambda: client.get_model_repository_index(as_json=True).get("models", []))
    with triton_http.InferenceServerClient(http_address) as client:
        return {"grpc": over_grpc, "http": _seen(client, client.get_model_repository_index)}


def _seen(client: Any, index: Any) -> dict[str, Any]:
    return {
        "index before": outcome(index),
        "ready before": client.is_model_ready(NAME),
        "load": outcome(lambda: client.load_model(NAME)),
        "ready": [client.is_model_ready(NAME), client.is_model_ready(NAME, "2"), client.is_model_ready(NAME, "1")],
        "index": outcome(index),
        "with config": outcome(lambda: client.load_model(NAME, config="{}")),
        "with files": outcome(lambda: client.load_model(NAME, config="{}", files={"file:1/model.onnx": b"graph"})),
        "unknown": outcome(lambda: client.load_model("birds")),
        "broken": outcome(lambda: client.load_model("broken")),
        "unload": outcome(lambda: client.unload_model(NAME, unload_dependents=True)),
        "ready after": client.is_model_ready(NAME),
        "index after": outcome(index),
    }


if __name__ == "__main__":
    json.dump(main(*sys.argv[1:3]), sys.stdout)
