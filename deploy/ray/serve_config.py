"""The Serve config of a package: what `serve deploy FILE` reads."""

from typing import Any

from fuseline.deploy.ray.app_args import AppArgs
from fuseline.deploy.ray.servicers import SERVICER_FUNCTIONS

GRPC_PORT, HTTP_PORT = 8001, 8002
"""Ports of the proxies: those of `fuseline serve`."""

_HTTP_TIMEOUT_S = 60.0
"""Seconds for a request over HTTP, whose clients send no deadline; over gRPC the client's own holds, and a stream may
be open for long."""

_ALWAYS = ("package", "name", "num_cpus", "min_replicas")
"""Arguments that a config has though they may be their defaults: what whoever runs it changes first."""


def serve_config(
    package: str,
    *,
    name: str,
    min_replicas: int = 1,
    max_replicas: int | None = None,
    cpus: float = 1.0,
    gpus: float = 0.0,
    memory_bytes: int | None = None,
    max_ongoing_requests: int | None = None,
    **more: Any,
) -> dict[str, Any]:
    """Return the config of a cluster that serves the package at the path `package` of its nodes, and nothing else.

    `name` is that of the application and of the model in requests. `max_replicas` None: there are `min_replicas`,
    always. `more` are further arguments of `fuseline.deploy.ray:app`. Of the rest, what has its
    default is left out.

    Raises `InputError`: an argument breaks a rule.
    """
    given = {
        "package": package,
        "name": name,
        "num_cpus": cpus,
        "num_gpus": gpus,
        "memory": memory_bytes,
        "min_replicas": min_replicas,
        "max_replicas": max_replicas,
        "max_ongoing_requests": max_ongoing_requests,
        **more,
    }
    args = AppArgs.model_validate(given)
    told = args.model_dump(mode="json")
    arguments = {field: told[field] for field in _ALWAYS} | args.model_dump(mode="json", exclude_defaults=True)
    return {
        "proxy_location": "EveryNode",
        "http_options": {"host": "0.0.0.0", "port": HTTP_PORT, "request_timeout_s": _HTTP_TIMEOUT_S},  # noqa: S104
        "grpc_options": {"port": GRPC_PORT, "grpc_servicer_functions": list(SERVICER_FUNCTIONS)},
        "applications": [
            {
                "name": name,
                "route_prefix": "/",
                "import_path": "fuseline.deploy.ray:app",
                "args": arguments,
            }
        ],
    }
