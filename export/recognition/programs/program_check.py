"""Comparison of a TorchScript file's program with the recognised network."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from torch import nn

from fuseline.export.program import Program
from fuseline.export.recognition.naming.foreign_networks import FACTORY
from fuseline.export.recognition.programs.pool_sizes import InputSizes, input_sizes
from fuseline.export.recognition.programs.program_graph import Graph
from fuseline.export.recognition.programs.program_node import Node
from fuseline.export.recognition.programs.program_of_module import program_of_module
from fuseline.serve.errors import ArchitectureError

Subject = Literal["strides", "eps", "pools", "activations", "shortcuts"]
"""What a file can settle: `strides` include paddings, dilations and groups; `shortcuts` are what goes around a block,
and where it starts."""
EVERYTHING: frozenset[Subject] = frozenset(get_args(Subject))


@dataclass(frozen=True, slots=True)
class FileFacts:
    """What a checkpoint's own layers or its program tell about the network, beyond agreeing with it."""

    evidence: tuple[str, ...] = ()
    """Sentences about what was taken from the file."""
    input_sizes: InputSizes | None = None
    """The input sizes that the last pool is made for, if it has a fixed size."""
    settled: frozenset[Subject] = frozenset()
    """What the file tells for the whole network, so that nothing about it is assumed."""


def apply_program(module: nn.Module, layer_names: Mapping[str, str], program: Program) -> FileFacts:
    """Take each BatchNorm's eps from `program`, and compare all the rest of it with `module`.

    Args:
        module: the recognised network.
        layer_names: its submodule names to the checkpoint's.
        program: the file's program, with the checkpoint's names.

    Raises:
        ArchitectureError: `program` computes something else. The message names the first layer that does.
    """
    evidence: list[str] = []
    graph = Graph()
    network_nodes, file_nodes = graph.nodes(program_of_module(module, layer_names)), graph.nodes(program)
    if file_nodes[-1].kind in ("softmax", "log_softmax") and file_nodes[-1].setting("dim") in (1, -1):
        evidence.append(f"the {file_nodes[-1].kind} at the end of its program is left out: the server applies softmax")
        file_nodes.pop()
    if file_nodes[-1] != network_nodes[-1]:
        raise _contradiction(network_nodes, file_nodes)
    epsilons = set()
    layers = {name: module.get_submodule(layer) for layer, name in layer_names.items()}
    for node in file_nodes:
        if node.kind == "batch_norm":
            layer, eps = layers[node.weights[0].rpartition(".")[0]], node.setting("eps")
            if isinstance(layer, nn.BatchNorm2d) and isinstance(eps, float) and layer.eps != eps:
                layer.eps = eps
                epsilons.add(eps)
    evidence += [f"BatchNorm's eps of {eps:g} taken from the checkpoint's program" for eps in sorted(epsilons)]
    evidence.append(
        "its TorchScript program, which was read and not run, has the strides, pools, activations and shortcuts of "
        "this network"
    )
    return FileFacts(tuple(evidence), _input_sizes(file_nodes[-1]), EVERYTHING)


def input_sizes_of_pool(
    module: nn.Module, layer_names: Mapping[str, str], kernel: tuple[int, int], *, ceil_mode: bool
) -> InputSizes | None:
    """Return the sizes of the pictures whose last map an average pool of `kernel` covers in `module`."""
    classifier = Graph().nodes(program_of_module(module, layer_names))[-1]
    return input_sizes(classifier.inputs[0], kernel, ceil_mode=ceil_mode)


def _input_sizes(classifier: Node) -> InputSizes | None:
    pool = classifier.inputs[0] if classifier.inputs else classifier
    kernel = pool.setting("kernel") if pool.kind == "global_average" else None
    if not isinstance(kernel, tuple) or not all(type(side) is int for side in kernel):
        return None
    return input_sizes(pool, (kernel[0], kernel[1]), ceil_mode=pool.setting("ceil") is True)


def _contradiction(network_nodes: Sequence[Node], file_nodes: Sequence[Node]) -> ArchitectureError:
    if batch := next((node for node in file_nodes if node.kind == "batch_norm" and node.setting("training")), None):
        return ArchitectureError(
            f"by the program in the file, {batch.layer} normalises by the pictures of its own batch: it was traced in "
            "training. Trace it after model.eval(), or save the weights alone: torch.save(model.state_dict(), PATH)"
        )
    found, expected = _first_difference(network_nodes, file_nodes)
    return ArchitectureError(
        f"by its tensors this is a known ResNet, but by the program in the file {found}, where that network has "
        f"{expected}; it would compute something else. To export it, {FACTORY}"
    )


def _first_difference(network_nodes: Sequence[Node], file_nodes: Sequence[Node]) -> tuple[str, str]:
    """Describe the first of `file_nodes` that isn't among `network_nodes`, and the node that is in its place there."""
    known, in_file = set(network_nodes), set(file_nodes)
    odds = [node for node in file_nodes if node not in known]
    # A node made of constants alone says less than the one where pictures meet it.
    odd = next(filter(_is_of_pictures, odds), None)
    if odd is None:
        rest = next(node for node in network_nodes if node not in in_file)
        return f"{_named(file_nodes[-1])} gives the logits", f"{_named(rest)} behind it"
    twins = [node for node in network_nodes if node not in in_file]
    if odd.weights:
        for twin in (node for node in twins if node.weights == odd.weights):
            if odd.kind != twin.kind:
                return f"{odd.layer} computes {_described(odd)}", "a convolution or a BatchNorm"
            for setting, found in odd.settings:
                if found != (expected := twin.setting(setting)):
                    return f"{odd.layer} has {setting} {_shown(found)}", f"{setting} {_shown(expected)}"
            return f"{odd.layer} takes {_sources(odd)}", _sources(twin)
    instead = next((node for node in twins if node.inputs == odd.inputs and not node.weights), None)
    place = f" at {odd.layer}" if odd.layer else ""
    behind = f" behind {_sources(odd)}" if odd.inputs else ""
    return f"{_described(odd)} comes{place}{behind}", _described(instead) if instead else "no such step"


def _is_of_pictures(node: Node) -> bool:
    left, seen = [node], {node}
    while left:
        found = left.pop()
        if found.kind == "pictures":
            return True
        new = [source for source in found.inputs if source not in seen]
        left += new
        seen.update(new)
    return False


def _sources(node: Node) -> str:
    return " and ".join(_named(source) for source in node.inputs if _is_of_pictures(source))


def _named(node: Node) -> str:
    """Return a layer's name, or the description of another operator with the layer that it follows."""
    if node.kind == "pictures":
        return "the pictures"
    if node.weights and node.layer:
        return node.layer
    above = node
    while above.inputs and not above.weights:
        above = above.inputs[0]
    return f"{_described(node)} behind {above.layer or 'the pictures'}"


def _described(node: Node) -> str:
    settings = ", ".join(f"{name} {_shown(value)}" for name, value in node.settings if "Unknown()" not in repr(value))
    return f"{node.kind}{f' ({settings})' if settings else ''}"[:200]


def _shown(value: Any) -> str:
    return str(value[0] if isinstance(value, tuple) and len(value) == 2 and value[0] == value[1] else value)
