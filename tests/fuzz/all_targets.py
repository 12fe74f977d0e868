"""Every target by its name, those that need a server and those that don't."""

from collections.abc import Callable, Mapping
from importlib import import_module

from tests.fuzz import served
from tests.fuzz.calls import call_metadata, streams
from tests.fuzz.connections import connections, guarded_connections
from tests.fuzz.servers import Servers
from tests.fuzz.target import Target

SERVED: dict[str, Callable[[Servers], Target]] = {
    "classify messages": lambda servers: served.classify_messages(servers.open.channel),
    "inference messages": lambda servers: served.inference_messages(servers.open.channel),
    "streams": lambda servers: streams(servers.open.channel),
    "call metadata": lambda servers: call_metadata(servers.guarded.channel),
    "pictures over HTTP": lambda servers: served.pictures(servers.open.http),
    "forms": lambda servers: served.forms(servers.open.http),
    "JSON over HTTP": lambda servers: served.json_bodies(servers.open.http),
    "binary tensors over HTTP": lambda servers: served.binary_bodies(servers.open.http),
    "HTTP connections": lambda servers: connections(servers.open.http),
    "HTTP connections with tokens": lambda servers: guarded_connections(servers.guarded.http),
    "control messages": lambda servers: served.control_messages(servers.open.channel),
    "control over HTTP": lambda servers: served.control_bodies(servers.open.http),
}
"""Targets that call a server, each made of the servers that there are; last those that may turn off its log."""

READERS: Mapping[str, str] = {
    "pictures": "targets",
    "manifests": "targets",
    "REST tensors": "targets",
    "torch files": "checkpoints",
    "safetensors": "checkpoints",
    "flags": "configuration",
    "serving blocks": "configuration",
    "token files": "configuration",
    "certificates": "configuration",
    "measurements": "deployment",
    "traces": "configuration",
    "profiles": "profiles",
    "reports": "console",
    "loads": "console",
}
"""Targets that need no server, and the module of each, imported when it is asked for: torch takes its time."""

NAMES = (*READERS, *SERVED)


def target_called(name: str, servers: Servers) -> Target:
    """Return the target of that name, for which a server is started if it needs one that isn't there."""
    return SERVED[name](servers) if name in SERVED else reader_called(name)


def reader_called(name: str) -> Target:
    """Return the target of that name, which needs no server, or `MODULE:NAME`: that of a module's `TARGETS`."""
    module, _, its_name = name.rpartition(":")
    targets: Mapping[str, Target] = import_module(module or f"tests.fuzz.{READERS[name]}").TARGETS
    return targets[its_name]
