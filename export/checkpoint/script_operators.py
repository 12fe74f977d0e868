"""The values of a TorchScript program's variables while it is read, and the results of its operators."""

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fuseline.export.checkpoint.inert_objects import Inert
from fuseline.export.checkpoint.script_code import UnreadableError
from fuseline.export.program import Call, Pictures, Result, Size, Unknown, Weight

_MAX_WORK = 500_000
"""Largest number of steps; reading a ResNet-152 takes about 60,000."""
_MAX_CALLS = 20_000
"""Largest number of operator calls; a ResNet of 1202 layers makes about 5,000."""
_MAX_KEPT_ITEMS = 16
_MAX_INTEGER = 2**63
MAX_KEPT_VALUES = 3  # a mean or a deviation of each colour
# Operators that return their first argument at inference. `to` changes the type at most, and all are read as float32.
_SAME = frozenset(
    {"contiguous", "dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout", "detach", "to", "alias"}
    | {"clone", "type_as", "float", "half", "requires_grad_", "cpu", "cuda", "ImplicitTensorToNum", "data"}
)
_VIEWS = frozenset(
    {"slice", "select", "view", "view_as", "reshape", "flatten", "squeeze", "unsqueeze", "transpose", "permute", "t"}
    | {"expand", "expand_as", "narrow", "unflatten", "numpy_T", "chunk", "split", "unbind", "movedim", "diagonal"}
)
_KEEP_RANK = frozenset(
    {"conv2d", "_convolution", "_convolution_mode", "batch_norm", "max_pool2d", "avg_pool2d", "adaptive_avg_pool2d"}
    | {"relu", "leaky_relu", "hardtanh", "elu", "gelu", "silu", "sigmoid", "add", "sub", "mul", "div", "slice", "pad"}
)
_PICTURES_RANK = 4
_FLOATS = (5, 6, 7, 15)  # numbers of float16, float32, float64 and bfloat16 in c10/core/ScalarType.h
# Operators that change a list, a dict or a module in place.
_CHANGERS = frozenset(
    {"extend", "insert", "pop", "clear", "reverse", "sort", "remove", "_set_item", "update", "Delete"}
)
_COMPARISONS: dict[str, Callable[[Any, Any], Any]] = {
    "eq": operator.eq,
    "ne": operator.ne,
    "lt": operator.lt,
    "le": operator.le,
    "gt": operator.gt,
    "ge": operator.ge,
    "add": operator.add,
    "sub": operator.sub,
    "mul": operator.mul,
    "div": operator.truediv,
    "floordiv": operator.floordiv,
    "remainder": operator.mod,
    "__and__": lambda one, other: one and other,
    "__or__": lambda one, other: one or other,
}
_CASTS: dict[str, Callable[[Any], Any]] = {"int": int, "float": float, "bool": bool, "str": str}


@dataclass(frozen=True, slots=True)
class Module:
    """A module of the program, and its name in the network."""

    inert: Inert
    path: str


@dataclass(eq=False, slots=True)
class Cell:
    """A tensor that several variables may share, so that an in-place operator changes it for all of them."""

    value: Pictures | Result | Weight
    is_view: bool = False
    has_views: bool = False


@dataclass(frozen=True, slots=True)
class Named:
    """A function by its full name, or the beginning of such a name."""

    name: str


@dataclass(frozen=True, slots=True)
class Sizes:
    """The sizes of all dimensions of a tensor."""

    of: Pictures | Result


class Operators:
    """The calls that were read so far. Operators on plain values are computed, those on tensors recorded."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self._work = 0
        self._ranks: list[int | None] = []

    def spend(self, work: int) -> None:
        """Count `work`, in expressions, statements and copied elements; raise `UnreadableError` beyond the bound."""
        self._work += work
        if self._work > _MAX_WORK:
            raise UnreadableError(f"its code takes more than {_MAX_WORK} steps to read")

    def frozen(self, value: Any) -> Any:
        """Return an argument as `Call` holds it."""
        self.spend(1)
        if isinstance(value, Cell):
            return value.value
        if isinstance(value, list | tuple):
            return tuple(map(self.frozen, value))
        plain = value is None or isinstance(value, bool | int | float | str | Size | Unknown)
        return value if plain else Unknown()

    def apply(self, name: str, given: list[Any], keywords: dict[str, Any], layer: str) -> Any:
        """Return the result of the operator called `name`, of torch or of the language."""
        first = given[0] if given else None
        match name:
            case "RaiseException":
                raise UnreadableError(f"{layer or 'its forward'} raises an error")
            case "annotate" | "unchecked_cast":
                return given[1]
            case "unchecked_unwrap_optional" | "_unwrap_optional":
                return first
            case "dim" if isinstance(first, Cell) and (rank := self._rank(first.value)) is not None:
                return rank
            case "size" | "len" | "dim" if isinstance(first, Cell) and not isinstance(first.value, Weight):
                dimension = given[1] if len(given) > 1 else None
                if name == "size" and dimension is None:
                    return Sizes(first.value)
                return Size(first.value, dimension) if isinstance(dimension, int) else Unknown()
            case "size" if isinstance(first, Cell) and isinstance(first.value, Weight):
                shape = list(first.value.shape)
                return shape[given[1]] if len(given) > 1 else shape
            case "tensor" | "as_tensor" if isinstance(first, list) and all(
                type(item) in (int, float) for item in first
            ):
                values = tuple(map(float, first)) if len(first) <= MAX_KEPT_VALUES else ()
                return Cell(Weight("a constant", (len(first),), values))
            case "len" if isinstance(first, list | tuple | dict | str):
                return len(first)
            case "len" if isinstance(first, Sizes):
                return Unknown()
            case "range" if all(isinstance(bound, int) for bound in given):
                bounds = range(*given)
                self.spend(len(bounds))
                return list(bounds)
            case "NumToTensor" | "Int" | "ScalarImplicit" if not isinstance(first, Cell):
                return first
            case "__not__" if isinstance(first, bool | int | None):
                return not first
            case "neg" if isinstance(first, int | float):
                return -first
            case "append" if isinstance(first, list):
                first.append(given[1])
                return first
            case "__contains__" if (
                isinstance(first, list) and len(first) <= _MAX_KEPT_ITEMS and isinstance(given[1], int)
            ):
                return given[1] in [item for item in first if isinstance(item, int)]
            case "format" | "warn" | "device" | "uninitialized" | "dtype" | "is_floating_point" | "is_cuda":
                return Unknown()
            case "__not__" if not isinstance(first, Cell):
                return Unknown()
        if name in ("__is__", "__isnot__") and None in given:
            return (given[0] is given[1]) == (name == "__is__")
        if name in ("is_scripting", "is_tracing"):
            return name == "is_scripting"
        if name in _CASTS and (first is None or isinstance(first, bool | int | float | str)):
            return _CASTS[name](first)
        if name in _COMPARISONS and len(given) == 2 and not any(isinstance(value, Cell) for value in given):
            return _compared(name, *given)
        if name in _CHANGERS or "out" in keywords:
            raise UnreadableError(f"{layer or 'its forward'} changes a list or a tensor by {name[:60]}")
        return self.on_tensors(name, given, keywords, layer)

    def on_tensors(self, name: str, given: list[Any], keywords: dict[str, Any], layer: str) -> Any:
        """Record the call of an operator on tensors, and return its result."""
        first = given[0] if given else None
        in_place = name.endswith("_") and not name.startswith("_")
        plain_name = name.removesuffix("_") if in_place else name
        if isinstance(first, Cell) and plain_name in _SAME and not _makes_integers(plain_name, given, keywords):
            if plain_name.endswith("dropout") and given[2:3] != [False]:
                raise UnreadableError(f"{layer or 'its forward'} drops features at random: it was traced in training")
            return first if plain_name != "clone" else Cell(first.value)
        if in_place and not (isinstance(first, Cell) and not first.is_view and not first.has_views):
            raise UnreadableError(f"{layer or 'its forward'} writes into a part of a tensor by {name[:60]}")
        arguments = tuple(map(self.frozen, given))
        words = {key: self.frozen(value) for key, value in keywords.items()}
        if plain_name in _CASTS and not any(map(_is_of_tensor, (*arguments, *words.values()))):
            return Unknown()
        if len(self.calls) >= _MAX_CALLS:
            raise UnreadableError(f"it calls more than {_MAX_CALLS} operators")
        self.calls.append(Call(plain_name, arguments, words, layer))
        self._ranks.append(self._rank(arguments[0]) if arguments and plain_name in _KEEP_RANK else None)
        made = Result(len(self.calls) - 1)
        if in_place:
            assert isinstance(first, Cell)
            first.value = made
            return first
        is_view = plain_name in _VIEWS
        if is_view and isinstance(first, Cell):
            first.has_views = True
        return Cell(made, is_view)

    def _rank(self, value: Any) -> int | None:
        """Return the number of a tensor's dimensions; None if that isn't known."""
        if isinstance(value, Pictures):
            return _PICTURES_RANK
        if isinstance(value, Weight):
            return len(value.shape)
        return self._ranks[value.call] if isinstance(value, Result) else None


def _compared(name: str, one: Any, other: Any) -> Any:
    """Return the result of an operator on two plain values; `Unknown` where only the running program would know."""
    numbers = all(isinstance(value, bool | int | float) for value in (one, other))
    texts = name in ("eq", "ne") and all(isinstance(value, str) for value in (one, other))
    if not (numbers or texts):
        return Unknown()
    found = _COMPARISONS[name](one, other)
    return found if isinstance(found, bool | float) or abs(found) < _MAX_INTEGER else Unknown()


def _is_of_tensor(value: Any) -> bool:
    """Return whether a frozen argument is or contains a call's result or a tensor of the file."""
    return isinstance(value, Pictures | Result | Weight) or (
        isinstance(value, tuple) and any(map(_is_of_tensor, value))
    )


def _makes_integers(name: str, given: Sequence[Any], keywords: Mapping[str, Any]) -> bool:
    codes = [value for value in (*given, *keywords.values()) if type(value) is int]
    return name == "to" and bool(codes) and codes[0] not in _FLOATS


def kind_of(value: Any) -> str:
    """Return what kind of value `value` is, for people."""
    names: Mapping[type, str] = {Cell: "a tensor", Module: "a module", Named: "a name"}
    return names.get(type(value), f"a {type(value).__name__}")
