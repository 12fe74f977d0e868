"""The normal form of one call of a program.

In it a linear layer is a 1x1 convolution of pooled features; a mean over height and width is a global average pool, as
is a pool of a fixed size right before the features are flattened; slices and zero channels are a parameter-free
shortcut.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from fuseline.export.program import Call, Pictures, Result, Size, Weight
from fuseline.export.recognition.programs.operator_signatures import arguments_of
from fuseline.export.recognition.programs.program_node import Node

_ALL = (None, 0, 9223372036854775807)
_SPATIAL = (2, 3)

_RESHAPES = ("flatten", "view", "reshape", "squeeze", "unsqueeze")


class Normaliser:
    """Turns one call of a program into a node in normal form.

    Args:
        make: makes a node of a graph.
        node_of: the node of the pictures, or of an earlier call's result.
        call: the call.
    """

    def __init__(self, make: Callable[..., Node], node_of: Callable[[Any], Node], call: Call) -> None:
        self._make = make
        self._node_of = node_of
        self._call = call

    def node(self) -> Node:
        """Return the call in normal form; a call whose arguments don't fit its operator stays as it is."""
        try:
            return self._known() or self._other()
        except (TypeError, ValueError, LookupError, ArithmeticError):
            return self._other()

    def _known(self) -> Node | None:
        call = self._call
        given = arguments_of(call)
        source = self._source(given.get("input"))
        if given and (source is not None or call.operator == "zeros"):
            found = getattr(self, f"_{call.operator.strip('_')}", lambda _given, _source: None)(given, source)
            if isinstance(found, Node):
                return found
        first = call.arguments[0] if call.arguments else None
        source = self._source(first)
        if call.operator in _RESHAPES and source is not None:
            return self._reshape(source)
        if call.operator in ("zeros_like", "new_zeros") and source is not None:
            return self._zeros_like(source)
        if call.operator == "select" and source is not None and source.is_pooled and call.arguments[1] in _SPATIAL:
            return source  # the one row or column that there is
        if call.operator == "t" and isinstance(first, Weight):
            return self._make("t", (), {}, (first.name,), call.layer, {"weight": first})
        if call.operator == "cat" and isinstance(first, tuple) and (joined := self._joined(first)):
            return joined
        return None

    def _source(self, value: Any) -> Node | None:
        return self._node_of(value) if isinstance(value, Pictures | Result) else None

    def _of(self, kind: str, *inputs: Node, **settings: Any) -> Node:
        return self._make(kind, inputs, settings, layer=self._call.layer)

    def _other(self) -> Node:
        """Return a node of the call as it is, with all of its tensors and constants."""
        inputs, weights, plain = [], [], []
        for value in _flat((*self._call.arguments, *sorted(self._call.keywords.items()))):
            if isinstance(value, Pictures | Result):
                inputs.append(self._node_of(value))
            elif isinstance(value, Weight):
                weights.append(value.name)
            else:
                plain.append(value)
        settings = {"arguments": tuple(plain)} if plain else {}
        return self._make(self._call.operator, inputs, settings, weights, self._call.layer)

    def _weighted(self, source: Node, weight: Any, bias: Any, settings: Mapping[str, Any]) -> Node | None:
        if not isinstance(weight, Weight) or not isinstance(bias, Weight | None) or len(weight.shape) not in (2, 4):
            return None
        kernel = weight.shape[2:] or (1, 1)
        padding, dilation = settings["padding"], _pair(settings["dilation"])
        if padding == "valid":
            padding = 0
        elif padding == "same" and all(
            (side - 1) * apart % 2 == 0 for side, apart in zip(kernel, dilation, strict=True)
        ):
            padding = tuple((side - 1) * apart // 2 for side, apart in zip(kernel, dilation, strict=True))
        padding = _pair(padding)
        if source.kind == "pad" and (edges := source.setting("symmetric")) and isinstance(padding, tuple):
            source, padding = source.inputs[0], (padding[0] + edges[0], padding[1] + edges[1])
        names = (weight.name, bias.name if bias else None)
        found = {"stride": _pair(settings["stride"]), "padding": padding, "dilation": dilation}
        notes = {"channels": weight.shape[0], "kernel": kernel}
        found["groups"] = settings["groups"]
        return self._make("weighted", (source,), found, names, self._call.layer, notes)

    def _conv2d(self, given: dict[str, Any], source: Node) -> Node | None:
        return self._weighted(source, given["weight"], given["bias"], given)

    _convolution_mode = _conv2d

    def _convolution(self, given: dict[str, Any], source: Node) -> Node | None:
        return None if given["transposed"] else self._conv2d(given, source)

    def _linear(self, given: dict[str, Any], source: Node) -> Node | None:
        settings = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1}
        return self._weighted(source, given["weight"], given["bias"], settings)

    def _addmm(self, given: dict[str, Any], source: Node) -> Node | None:
        weight = self._source(given["weight"])
        if weight is None or weight.kind != "t" or (given["beta"], given["alpha"]) != (1, 1):
            return None
        return self._linear({"weight": weight.setting("weight"), "bias": given["bias"]}, source)

    def _batch_norm(self, given: dict[str, Any], source: Node) -> Node | None:
        tensors = [given[name] for name in ("weight", "bias", "running_mean", "running_var")]
        if not all(isinstance(tensor, Weight) for tensor in tensors):
            return None
        settings = {"training": True} if given["training"] is not False else {}
        notes = {"eps": given["eps"]}
        names = [tensor.name for tensor in tensors]
        return self._make("batch_norm", (source,), settings, names, self._call.layer, notes)

    def _max_pool2d(self, given: dict[str, Any], source: Node) -> Node:
        pool = _pool_settings(given)
        if pool["kernel_size"] == (1, 1) and not any(pool["padding"]):
            return self._stepped(source, dict(zip(_SPATIAL, pool["stride"], strict=True)))
        return self._of("max_pool2d", source, **pool, dilation=_pair(given["dilation"]), ceil_mode=given["ceil_mode"])

    def _avg_pool2d(self, given: dict[str, Any], source: Node) -> Node:
        sides = _pair(given["kernel_size"])
        whole = [isinstance(side, Size) and self._source(side.of) == source for side in sides]
        if all(whole) and all(side.dimension in (2, 3, -1, -2) for side in sides):
            return self._of("global_average", source)
        pool = _pool_settings(given)
        if pool["kernel_size"] == (1, 1) and not any(pool["padding"]) and pool["stride"] != (1, 1):
            return self._stepped(source, dict(zip(_SPATIAL, pool["stride"], strict=True)))
        divisor = {"divisor_override": given["divisor_override"]} if given["divisor_override"] is not None else {}
        # Whether edges count can't matter without padding; nor can the rounding of the size, as a pool that dropped an
        # odd row would give another shape than the convolution that halves the main path.
        padded = {"count_include_pad": given["count_include_pad"]} if any(pool["padding"]) else {}
        settings = {**pool, **divisor, **padded}
        return self._make(
            "avg_pool2d", (source,), settings, (), self._call.layer, {"ceil": given["ceil_mode"] is not False}
        )

    def _adaptive_avg_pool2d(self, given: dict[str, Any], source: Node) -> Node | None:
        return self._of("global_average", source) if _pair(given["output_size"]) == (1, 1) else None

    def _mean(self, given: dict[str, Any], source: Node) -> Node | None:
        dims = given["dim"] if isinstance(given["dim"], tuple) else (given["dim"],)
        if any(type(dim) is not int for dim in dims) or given["dtype"] not in (None, 6):
            return None
        if len(dims) == 2 and {dim % 4 for dim in dims} == set(_SPATIAL):
            return self._of("global_average", source)
        if len(dims) == 1 and dims[0] in (2, -1) and source.kind == "reshape" and source.setting("flattens_from") == 2:
            return self._of("global_average", source.inputs[0])
        if len(dims) == 1 and source.kind == "mean_of_side":
            rest = {2, 3} - {source.setting("side")} if source.setting("keepdim") else {2}
            rank = 4 if source.setting("keepdim") else 3
            return self._of("global_average", source.inputs[0]) if dims[0] % rank in rest else None
        if len(dims) == 1 and dims[0] in (2, 3, -1, -2):
            return self._of("mean_of_side", source, side=dims[0] % 4, keepdim=bool(given["keepdim"]))
        return None

    def _pooled(self, pool: Node) -> Node:
        """Return the global average that `pool`, whose result is flattened, must be; a padded pool stays as it is."""
        if pool.kind != "avg_pool2d" or any(pool.setting("padding")) or pool.setting("divisor_override") is not None:
            return pool
        notes = {"kernel": pool.setting("kernel_size"), "ceil": pool.setting("ceil")}
        return self._make("global_average", pool.inputs, {}, (), pool.layer, notes)

    def _reshape(self, source: Node) -> Node:
        operator, arguments = self._call.operator, self._call.arguments[1:]
        if source.is_pooled:
            return source
        if source.kind == "avg_pool2d" and _flattens_from(operator, arguments) in (1, "all sides"):
            return self._pooled(source)
        return self._make(
            "reshape",
            (source,),
            {"flattens_from": _flattens_from(operator, arguments), "of": arguments},
            (),
            self._call.layer,
        )

    def _slice(self, given: dict[str, Any], source: Node) -> Node | None:
        if given["start"] not in (None, 0) or given["end"] not in _ALL:
            return None
        if given["step"] in (None, 1):
            return source
        return self._stepped(source, {given["dim"] % 4: given["step"]}) if given["dim"] in (2, 3, -1, -2) else None

    def _stepped(self, source: Node, steps: Mapping[int, int]) -> Node:
        """Return every n-th row or column of `source`; `steps` is dimension -> n."""
        before = _shortcut_of(source)
        stride = tuple(old * steps.get(dim, 1) for dim, old in zip(_SPATIAL, before["stride"], strict=True))
        return self._shortcut(source, **{**before, "stride": stride})

    def _shortcut(self, source: Node, **settings: Any) -> Node:
        return self._of("shortcut", source.inputs[0] if source.kind == "shortcut" else source, **settings)

    def _with_zeros(self, source: Node, before: int, after: int) -> Node:
        old = _shortcut_of(source)
        return self._shortcut(source, **{**old, "before": old["before"] + before, "after": old["after"] + after})

    def _pad(self, given: dict[str, Any], source: Node) -> Node | None:
        edges = given["pad"]
        if not isinstance(edges, tuple) or any(type(edge) is not int or edge < 0 for edge in edges) or len(edges) % 2:
            return None
        if not any(edges):
            return source
        if given.get("mode", "constant") != "constant" or given["value"] not in (None, 0):
            return None
        if len(edges) > 6:
            return None
        left, right, top, bottom, before, after = (edges + (0,) * 6)[:6]
        if not any((left, right, top, bottom)):
            return self._with_zeros(source, before, after)
        if before or after or left != right or top != bottom:
            return None
        return self._of("pad", source, symmetric=(top, left))

    _constant_pad_nd = _pad

    def _zeros(self, given: dict[str, Any], _source: Node | None) -> Node | None:
        size = given["size"]
        is_map = isinstance(size, tuple) and len(size) == 4 and type(size[1]) is int
        return self._of("zeros", channels=size[1]) if is_map else None

    def _zeros_like(self, source: Node) -> Node:
        if self._call.operator == "zeros_like":
            return self._of("zeros", channels=source.channels)
        return self._zeros({"size": self._call.arguments[1]}, None) or self._other()

    def _joined(self, parts: tuple[Any, ...]) -> Node | None:
        """Return the concatenation of one tensor and channels of zeros; None of any other."""
        nodes = [node for part in parts if (node := self._source(part))]
        places = [place for place, node in enumerate(nodes) if node.kind != "zeros"]
        counts = [node.setting("channels") for node in nodes if node.kind == "zeros"]
        dims = self._call.arguments[1:2] or (self._call.keywords.get("dim"),)
        if len(nodes) != len(parts) or len(places) != 1 or dims not in ((1,), (-3,)) or None in counts:
            return None
        place = places[0]
        return self._with_zeros(nodes[place], sum(counts[:place]), sum(counts[place:]))

    def _add(self, given: dict[str, Any], source: Node) -> Node | None:
        other = self._source(given["other"])
        return self._of("add", source, other) if other is not None and given["alpha"] == 1 else None

    def _mul(self, given: dict[str, Any], source: Node) -> Node | None:
        other = self._source(given["other"])
        if other is None:
            factor = given["other"]
            is_zero = factor.values == (0.0,) if isinstance(factor, Weight) else factor == 0
            return self._of("zeros", channels=source.channels) if is_zero else None
        for one, gate in ((source, other), (other, source)):
            if gate.kind == "sigmoid" and gate.inputs == (one,):
                return self._of("silu", one)
        return self._of("mul", source, other)

    def _clamp(self, given: dict[str, Any], source: Node) -> Node | None:
        return self._of("relu", source) if given["min"] == 0 and given.get("max") is None else None

    _clamp_min = _clamp

    def _hardtanh(self, given: dict[str, Any], source: Node) -> Node | None:
        return self._of("relu6", source) if (given["min_val"], given["max_val"]) == (0, 6) else None

    def _leaky_relu(self, given: dict[str, Any], source: Node) -> Node:
        return self._of("leaky_relu", source, negative_slope=given["negative_slope"])

    def _elu(self, given: dict[str, Any], source: Node) -> Node:
        return self._of("elu", source, alpha=given["alpha"])

    def _gelu(self, given: dict[str, Any], source: Node) -> Node:
        return self._of("gelu", source, approximate=given["approximate"])

    def _softmax(self, given: dict[str, Any], source: Node) -> Node:
        return self._of(self._call.operator, source, dim=given["dim"])

    _log_softmax = _softmax


def _shortcut_of(node: Node) -> dict[str, Any]:
    return dict(node.settings) if node.kind == "shortcut" else {"before": 0, "after": 0, "stride": (1, 1)}


def _pool_settings(given: Mapping[str, Any]) -> dict[str, Any]:
    kernel = _pair(given["kernel_size"])
    stride = kernel if given["stride"] in ((), None) else _pair(given["stride"])
    return {"kernel_size": kernel, "stride": stride, "padding": _pair(given["padding"])}


def _flattens_from(operator: str, arguments: tuple[Any, ...]) -> Any:
    """Return the first dimension that a reshape joins with those behind it; `all sides` for a squeeze."""
    if operator == "flatten":
        start, end = (*arguments, *(0, -1)[len(arguments) :])[:2]
        return start if end in (-1, 3) else None
    if operator == "squeeze":
        return "all sides"
    sizes = arguments[0] if arguments and isinstance(arguments[0], tuple) else arguments
    return {2: 1, 3: 2}.get(len(sizes)) if operator in ("view", "reshape") else None


def _flat(values: Sequence[Any]) -> Iterator[Any]:
    for value in values:
        if isinstance(value, list | tuple):
            yield from _flat(value)
        else:
            yield value


def _pair(value: Any) -> Any:
    """Return (h, w) of a value that may be one number for both."""
    if isinstance(value, list | tuple):
        return tuple(value) * (3 - len(value)) if len(value) in (1, 2) else tuple(value)
    return value if isinstance(value, str) else (value, value)
