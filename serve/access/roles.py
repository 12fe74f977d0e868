"""The one table of who may call what. What is not in it is refused where a server asks for tokens."""

import re
from collections.abc import Mapping
from enum import StrEnum


class Role(StrEnum):
    """What a token allows."""

    INFER = "infer"
    """To compute, and to read what is served and how it does."""
    ADMIN = "admin"
    """To change the server for everyone too: its models, shared memory, log and trace settings."""

    def allows(self, needed: "Role") -> bool:
        """Return whether who has this role may do what needs `needed`."""
        return self is Role.ADMIN or needed is Role.INFER


OPEN = None
"""In place of a role: anyone may call, also without a token."""

_CLASSIFIER = "/fuseline.v1.Classifier/"
_INFERENCE = "/inference.GRPCInferenceService/"
_HEALTH = "/grpc.health.v1.Health/"

ROLE_OF_RPC: Mapping[str, Role | None] = {
    # Load balancers and probes ask these, and hold no secrets.
    **dict.fromkeys((f"{_HEALTH}{name}" for name in ("Check", "List", "Watch")), OPEN),
    **dict.fromkeys((f"{_INFERENCE}{name}" for name in ("ServerLive", "ServerReady")), OPEN),
    **dict.fromkeys((f"{_CLASSIFIER}{name}" for name in ("Classify", "ClassifyStream", "GetModel")), Role.INFER),
    **dict.fromkeys(
        (
            f"{_INFERENCE}{name}"
            for name in (
                "ModelConfig",
                "ModelInfer",
                "ModelMetadata",
                "ModelReady",
                "ModelStatistics",
                "ModelStreamInfer",
                "RepositoryIndex",
                "ServerMetadata",
            )
        ),
        Role.INFER,
    ),
    # Regions belong to the server, not to who registered them, so their list is others' business too.
    **dict.fromkeys(
        (
            f"{_INFERENCE}{name}"
            for name in (
                "CudaSharedMemoryRegister",
                "CudaSharedMemoryStatus",
                "CudaSharedMemoryUnregister",
                "LogSettings",
                "RepositoryModelLoad",
                "RepositoryModelUnload",
                "SystemSharedMemoryRegister",
                "SystemSharedMemoryStatus",
                "SystemSharedMemoryUnregister",
                "TraceSetting",
            )
        ),
        Role.ADMIN,
    ),
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": Role.INFER,
}
"""Role that each gRPC method needs, by its full name."""

ROLE_OF_OPERATION: Mapping[str, Role | None] = {
    **dict.fromkeys(
        (
            # The page and its files, which are the same everywhere: it asks for a token itself.
            "GET /",
            "GET /console/{file}",
            "GET /healthz",
            "GET /livez",
            "GET /metrics",
            "GET /readyz",
            "GET /v2/health/live",
            "GET /v2/health/ready",
        ),
        OPEN,
    ),
    **dict.fromkeys(
        (
            "GET /console/events",
            "GET /console/models/{model}/versions/{version}/reference",
            "GET /console/models/{model}/versions/{version}/reference/{index}",
            "GET /console/models/{model}/versions/{version}/report",
            "GET /console/server",
            "GET /openapi.json",
            "GET /v1/models",
            "GET /v1/models/{model}",
            "GET /v1/models/{model}/versions/{version}",
            "GET /v2",
            "GET /v2/models/stats",
            "GET /v2/models/{model}",
            "GET /v2/models/{model}/config",
            "GET /v2/models/{model}/ready",
            "GET /v2/models/{model}/stats",
            "GET /v2/models/{model}/versions/{version}",
            "GET /v2/models/{model}/versions/{version}/config",
            "GET /v2/models/{model}/versions/{version}/ready",
            "GET /v2/models/{model}/versions/{version}/stats",
            "POST /v1/classify",
            "POST /v1/models/{model}/classify",
            "POST /v1/models/{model}/versions/{version}/classify",
            "POST /v2/models/{model}/infer",
            "POST /v2/models/{model}/versions/{version}/infer",
            "POST /v2/repository/index",
            "POST /v2/repository/{repository}/index",
        ),
        Role.INFER,
    ),
    # A load takes the time of everyone's requests.
    "POST /console/load": Role.ADMIN,
    **dict.fromkeys(
        (
            f"{method} /v2/{kind}sharedmemory/{path}"
            for kind in ("system", "cuda")
            for method, path in (
                ("GET", "status"),
                ("GET", "region/{region:path}/status"),
                ("POST", "region/{region:path}/register"),
                ("POST", "region/{region:path}/unregister"),
                ("POST", "unregister"),
            )
        ),
        Role.ADMIN,
    ),
    **dict.fromkeys(
        (
            f"{method} /v2/{path}"
            for method in ("GET", "POST")
            for path in ("logging", "trace/setting", "models/{model}/trace/setting")
        ),
        Role.ADMIN,
    ),
    **dict.fromkeys(
        (
            f"POST /v2/repository/{path}models/{{model}}/{verb}"
            for path in ("", "{repository}/")
            for verb in ("load", "unload")
        ),
        Role.ADMIN,
    ),
}
"""Role that each operation over HTTP needs, by its method and its path as routes write it; HEAD needs that of GET."""

_OPEN_PATHS = frozenset(operation.partition(" ")[2] for operation, role in ROLE_OF_OPERATION.items() if role is OPEN)
_PAGE_FILE = re.compile(r"/console/[a-z_]+\.(css|html|js)")


def is_open(path: str) -> bool:
    """Return whether anyone may call a path over HTTP, as a request has it, also without a token."""
    return path in _OPEN_PATHS or _PAGE_FILE.fullmatch(path) is not None
