"""A program in normal form: calls that compute the same become equal nodes, however they were written."""

from collections.abc import Mapping, Sequence
from typing import Any

from fuseline.export.program import Pictures, Program, Result
from fuseline.export.recognition.programs.operator_forms import Normaliser
from fuseline.export.recognition.programs.program_node import Node


class Graph:
    """Programs in normal form, with one table of nodes for all, so that they can be compared."""

    def __init__(self) -> None:
        self._numbers: dict[Any, int] = {}

    def nodes(self, program: Program) -> list[Node]:
        """Return the nodes that the logits depend on, in the order of execution; the last gives the logits."""
        pictures = self._node("pictures")
        made: list[Node] = []

        def node_of(value: Pictures | Result) -> Node:
            return made[value.call] if isinstance(value, Result) else pictures

        made.extend(Normaliser(self._node, node_of, call).node() for call in program.calls)
        result = node_of(program.result)
        wanted, left = {result}, [result]
        while left:
            for source in left.pop().inputs:
                if source not in wanted:
                    wanted.add(source)
                    left.append(source)
        kept = dict.fromkeys(node for node in (pictures, *made) if node in wanted)
        # The result may equal an earlier node; it stands last in any case.
        kept.pop(result)
        return [*kept, result]

    def _node(
        self,
        kind: str,
        inputs: Sequence[Node] = (),
        settings: Mapping[str, Any] | None = None,
        weights: Sequence[Any] = (),
        layer: str = "",
        notes: Mapping[str, Any] | None = None,
    ) -> Node:
        found = tuple(sorted((settings or {}).items()))
        numbers = [node.number for node in inputs]
        if kind in ("add", "mul"):
            numbers.sort()
        key = (kind, tuple(numbers), repr(found), tuple(weights))
        number = self._numbers.setdefault(key, len(self._numbers))
        return Node(kind, tuple(inputs), found, tuple(weights), number, layer, tuple((notes or {}).items()))
