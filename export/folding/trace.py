"""Tracing of a network as a flat graph of ATen operators, which folding rewrites and an inspection reads.

torch.export treats modules and functional calls of convolutions and BatchNorms alike, and names their weights as the
module does.
"""

import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr

import torch
from torch import fx, nn
from torch.fx.graph import CodeGen

from fuseline.export.folding.exporter_errors import explained, place_of_node
from fuseline.serve.errors import ArchitectureError

MAX_BATCH_ROWS = 65536
"""Largest number of rows of a batch in the traced graph."""

_ATEN = torch.ops.aten
_PROBABILITIES = {_ATEN.softmax.int: "softmax", _ATEN._softmax.default: "softmax", _ATEN.sigmoid.default: "sigmoid"}


def trace(module: nn.Module, input_shape: tuple[int, int, int]) -> fx.GraphModule:
    """Return the graph of `module`, which takes float32 (rows, *input_shape), NCHW, and returns one tensor.

    The graph takes any number of rows. Its nodes are one placeholder, `get_attr` of weights (by the module's own tensor
    names, in the same memory), `call_function` of `torch.ops.aten`, and the output, which is one node.
    `node.meta["val"].shape` is the shape of a node's value, whose first dimension is symbolic.

    Raises:
        ArchitectureError: control flow of `module` depends on the data, the number of rows is built in, or it doesn't
            return one tensor.
    """
    # Two rows: torch.export takes a dimension of size 1 for a constant.
    example = torch.zeros((2, *input_shape))
    batch = torch.export.Dim("batch", min=1, max=MAX_BATCH_ROWS)
    with quiet_exporter():
        try:
            # A failing export prints the graph so far, which says less than the line that its error names.
            with redirect_stderr(io.StringIO()):
                program = torch.export.export(module, (example,), dynamic_shapes=({0: batch},))
        except Exception as error:  # user code runs here, and torch.export has no error of its own
            raise ArchitectureError(
                f"torch.export can't trace the network for batches of any size: {explained(error)}"
            ) from error
    graph_module = program.module(check_guards=False)
    assert isinstance(graph_module, fx.GraphModule)
    graph = graph_module.graph
    output = graph.output_node()
    given = output.args[0]
    if not isinstance(given, tuple | list) or len(given) != 1 or not isinstance(given[0], fx.Node):
        raise ArchitectureError("the network doesn't return one tensor of logits (rows, classes)")
    if given[0].target in _PROBABILITIES:
        name = _PROBABILITIES[given[0].target]
        how = "the server applies softmax" if name == "softmax" else "with --task multi-label the server applies it"
        raise ArchitectureError(
            f"the network ends in a {name}, so it returns probabilities; expected logits, leave it out: {how}"
        )
    output.args = (given[0],)
    # The exported module keeps the caller's pytree convention and rejects eval(); a plain one does neither.
    graph.set_codegen(CodeGen())
    if foreign := next((node for node in graph.nodes if "functorch" in getattr(node.target, "__module__", "")), None):
        where = place_of_node(foreign)
        raise ArchitectureError(
            f"the network computes by torch.vmap or torch.func{f', at {where}' if where else ''}, which no graph of "
            "operators holds; compute on all rows at once"
        )
    _take_constants_as_they_are(graph)
    _pool_by_mean(graph)
    graph.eliminate_dead_code()
    graph.lint()
    traced = fx.GraphModule(graph_module, graph)
    return traced.eval()


def layer_name(node: fx.Node) -> str:
    """Return the name of the module whose weight `node`, a convolution, linear layer or BatchNorm, uses.

    For a weight that is used functionally, without a module of its own, it is the weight's name; for one that is
    computed, the name of the module that calls the operator.
    """
    weight = node.args[3] if node.target == _ATEN.batch_norm.default else node.args[1]
    if isinstance(weight, fx.Node) and weight.op == "get_attr":
        owner, _, leaf = str(weight.target).rpartition(".")
        return owner if owner and leaf in ("weight", "running_mean") else str(weight.target)
    callers = [path for path, _ in node.meta.get("nn_module_stack", {}).values()]
    return callers[-1] if callers and callers[-1] else node.name


@contextmanager
def quiet_exporter() -> Iterator[None]:
    """Keep torch's exporters from warning about their own internals."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "torch._export", "torch.fx")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def _take_constants_as_they_are(graph: fx.Graph) -> None:
    """Remove the copies that torch.export makes, for each call, of tensors that the forward makes from numbers.

    A tensor that is changed in place keeps its copy, as every call needs its own.
    """
    for node in list(graph.nodes):
        if node.target in (_ATEN.lift_fresh_copy.default, _ATEN.detach_.default) and node.args[0].op == "get_attr":
            schemas = [
                getattr(user.target, "_schema", None) for user in node.users if user.target != _ATEN.detach_.default
            ]
            if not any(schema is not None and schema.is_mutable for schema in schemas):
                node.replace_all_uses_with(node.args[0])
                graph.erase_node(node)


def _pool_by_mean(graph: fx.Graph) -> None:
    """Replace global average pooling by a mean, which is the same number and exports to one ReduceMean.

    torch.export decomposes `adaptive_avg_pool2d(1)` into an as_strided, which becomes a Gather over indices computed
    from the batch size.
    """
    for node in graph.find_nodes(op="call_function", target=_ATEN.adaptive_avg_pool2d.default):
        size = node.args[1]
        if isinstance(size, list | tuple) and list(size) in ([1], [1, 1]):
            with graph.inserting_before(node):
                mean = graph.call_function(_ATEN.mean.dim, (node.args[0], [-2, -1], True))
            mean.meta = dict(node.meta)
            node.replace_all_uses_with(mean)
            graph.erase_node(node)
