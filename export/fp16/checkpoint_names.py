"""The checkpoint's names of a graph's nodes."""

import difflib
import re
from collections.abc import Mapping, Sequence
from itertools import takewhile

from fuseline.export.fp16.float_nodes import FloatNodes
from fuseline.serve.errors import InputError

_NEAR = 5


def checkpoint_name(node: str, layer_names: Mapping[str, str]) -> str:
    """Return the checkpoint's name of the graph's `node`.

    A node without weights is named after the module that calls it and its operator, `layer1.0/Add`; the checkpoint has
    names only for the layers in that module.

    Args:
        layer_names: the module's names of layers to the checkpoint's, for every layer with weights.
    """
    module, slash, operator = node.partition("/")
    if module in layer_names:
        return layer_names[module] + slash + operator
    if not slash:
        return node
    # The checkpoint has no name for a module without weights, such as a pool, but one for its parent.
    parts = module.split(".")
    for length in range(len(parts), 0, -1):
        inside = f"{'.'.join(parts[:length])}."
        stored = [name.split(".") for layer, name in layer_names.items() if layer.startswith(inside)]
        if len(stored) > 1 and (shared := _shared_start(stored)):
            return ".".join((*shared, *parts[length:])) + slash + operator
    return node


def nodes_matching(patterns: Sequence[str], nodes: FloatNodes, layer_names: Mapping[str, str]) -> dict[str, str]:
    """Return node -> pattern, for the nodes in whose name in the checkpoint one of `patterns` is found.

    Raises:
        InputError: a pattern is no regular expression, or is found in no layer's name; the message has near names.
    """
    named = {node.name: checkpoint_name(node.name, layer_names) for node in nodes.nodes}
    found: dict[str, str] = {}
    for pattern in patterns:
        try:
            expression = re.compile(pattern)
        except re.error as error:
            raise InputError(f"--keep-fp32 {pattern!r} is no regular expression: {error}") from error
        hits = {node: pattern for node, layer in named.items() if expression.search(layer)}
        if not hits:
            layers = [named[node.name] for node in nodes.nodes if node.constants]
            near = difflib.get_close_matches(pattern, layers, _NEAR, cutoff=0.4) or layers[:_NEAR]
            raise InputError(
                f"--keep-fp32 {pattern!r} is found in none of the network's {len(layers)} layers' names; near it are "
                f"{', '.join(near)}. A BatchNorm that was folded belongs to the convolution before it"
            )
        found = hits | found
    return found


def _shared_start(paths: Sequence[Sequence[str]]) -> tuple[str, ...]:
    return tuple(steps[0] for steps in takewhile(lambda steps: len(set(steps)) == 1, zip(*paths, strict=False)))
