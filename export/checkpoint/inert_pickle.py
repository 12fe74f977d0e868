"""Reading of a pickle as plain values and inert objects; nothing that it names is imported, and nothing is called.

A pickle is a program for a stack machine (CPython's Lib/pickletools.py states every instruction). Here that machine has
no power: where `pickle` would import a name, it gets a `Name` that holds the text, and where `pickle` would call it, it
gets an `Inert` object that records the arguments. Only the built-in containers of a fixed table become real values, and
`construct`, which is code of ours and never of the file, may make values of further names.
"""

import pickletools
from collections.abc import Callable
from dataclasses import dataclass
from typing import IO, Any

from torch import Tensor

from fuseline.export.checkpoint.inert_objects import Inert, Name

_MAX_WORK = 10_000_000
"""Largest number of instructions and copied elements together, as a few bytes can ask for many copies of a list."""
_COST_OF_A_SET = 32  # an instruction of one byte makes a set of 216 bytes
_TEXT_COPIED_AT_ONCE = 64
_MAX_INTEGER_BITS = 4096
"""Largest number of bits of an integer; Python prints no decimal of more than 4300 digits."""
_MAX_KEY_BITS = 64
_MAX_KEY_PARTS = 64


Construct = Callable[[str, tuple[Any, ...]], Any]
"""A function that makes a value of a name and arguments, or returns `NotImplemented`."""


@dataclass(frozen=True, slots=True)
class Pickle:
    """What a pickle holds."""

    root: Any
    inert: tuple[str, ...]
    """Names of all inert objects, in the order of their first appearance."""


def read_pickle(
    file: IO[bytes],
    construct: Construct = lambda _name, _arguments: NotImplemented,
    persistent: Callable[[Any], Any] = lambda key: Inert("persistent id", (key,)),
) -> Pickle:
    """Read one pickle of any protocol from the position of `file`, which is moved to the pickle's end.

    Args:
        file: where the pickle is.
        construct: makes values of names that the pickle calls.
        persistent: makes a value of a persistent id.

    Raises:
        ValueError, IndexError, KeyError, TypeError, AttributeError: the pickle is damaged, or hostile: it asks for far
            more work or memory than its size explains, or has keys that take long to hash.
    """
    machine = _Machine(construct, persistent)
    for opcode, argument, _ in pickletools.genops(file):
        machine.step(opcode.name, argument)
    return Pickle(machine.stack.pop(), tuple(machine.inert))


class _Machine:
    def __init__(self, construct: Construct, persistent: Callable[[Any], Any]) -> None:
        self.stack: list[Any] = []
        self.inert: dict[str, None] = {}
        self._below: list[list[Any]] = []
        self._memo: dict[int, Any] = {}
        self._work = 0
        self._construct = construct
        self._persistent = persistent

    def step(self, opcode: str, argument: Any) -> None:
        stack = self.stack
        self._count(1)
        match opcode:
            case "PROTO" | "FRAME" | "STOP":
                pass
            case "NONE":
                stack.append(None)
            case "NEWTRUE" | "NEWFALSE":
                stack.append(opcode == "NEWTRUE")
            case "EMPTY_LIST":
                stack.append([])
            case "EMPTY_DICT":
                stack.append({})
            case "EMPTY_TUPLE":
                stack.append(())
            case "EMPTY_SET":
                self._count(_COST_OF_A_SET)
                stack.append(set())
            case "MARK":
                self._below.append(stack)
                self.stack = []
            case "POP":
                if stack:
                    stack.pop()
                else:
                    self._marked()
            case "POP_MARK":
                self._marked()
            case "DUP":
                stack.append(stack[-1])
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                self._push(tuple(self._popped(int(opcode[-1]))))
            case "TUPLE" | "LIST" | "FROZENSET":
                kinds: dict[str, Callable[[Any], Any]] = {"TUPLE": tuple, "LIST": list, "FROZENSET": _frozen}
                self._push(kinds[opcode](self._marked()))
            case "DICT":
                self._push(_pairs(self._marked()))
            case "APPEND":
                self._extend([stack.pop()])
            case "APPENDS":
                self._extend(self._marked())
            case "ADDITEMS":
                self._extend(self._marked())
            case "SETITEM":
                self._update(_pairs(self._popped(2)))
            case "SETITEMS":
                self._update(_pairs(self._marked()))
            case "GET" | "BINGET" | "LONG_BINGET":
                stack.append(self._memo[argument])
            case "PUT" | "BINPUT" | "LONG_BINPUT":
                self._memo[argument] = stack[-1]
            case "MEMOIZE":
                self._memo[len(self._memo)] = stack[-1]
            case "GLOBAL":
                module, _, name = argument.partition(" ")
                stack.append(_named(module, name))
            case "STACK_GLOBAL":
                stack.append(_named(*self._popped(2)))
            case "REDUCE" | "NEWOBJ":
                self._push(self._made(*self._popped(2)))
            case "NEWOBJ_EX":
                made_of, arguments, keywords = self._popped(3)
                self._count(len(arguments) + len(keywords))
                self._push(self._inert_object(made_of, tuple(arguments), dict(keywords)))
            case "INST":
                module, _, name = argument.partition(" ")
                self._push(self._made(_named(module, name), tuple(self._marked())))
            case "OBJ":
                made_of, *arguments = self._marked()
                self._push(self._made(made_of, tuple(arguments)))
            case "BUILD":
                self._build(stack.pop())
            case "PERSID":
                stack.append(self._persistent(argument))
            case "BINPERSID":
                stack.append(self._persistent(stack.pop()))
            case "EXT1" | "EXT2" | "EXT4":
                stack.append(Name(f"extension {argument}"))
            case "NEXT_BUFFER" | "READONLY_BUFFER":
                raise ValueError("the pickle's data lies outside of it")
            case _:  # a number or text, which the instruction itself carries
                if isinstance(argument, int) and argument.bit_length() > _MAX_INTEGER_BITS:
                    raise ValueError(f"the pickle holds a number of {argument.bit_length()} bits")
                stack.append(argument)

    def _count(self, work: int) -> None:
        self._work += work
        if self._work > _MAX_WORK:
            raise ValueError(f"the pickle asks for more work than {_MAX_WORK} steps")

    def _push(self, value: Any) -> None:
        self.stack.append(value)

    def _popped(self, count: int) -> list[Any]:
        if len(self.stack) < count:
            raise IndexError("the pickle takes more values than it has put")
        values = self.stack[-count:]
        del self.stack[-count:]
        return values

    def _marked(self) -> list[Any]:
        values = self.stack
        self.stack = self._below.pop()
        return values

    def _extend(self, values: list[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, Inert):
            target.items.extend(values)
        elif isinstance(target, set):
            target.update(_keys(values))
        elif isinstance(target, list):
            target.extend(values)
        else:
            raise TypeError(f"the pickle appends to a {type(target).__name__}")

    def _update(self, entries: dict[Any, Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, dict | Inert):
            raise TypeError(f"the pickle sets items of a {type(target).__name__}")
        (target if isinstance(target, dict) else target.entries).update(entries)

    def _made(self, made_of: Any, arguments: Any) -> Any:
        if not isinstance(arguments, tuple):
            raise TypeError(f"the pickle gives a {type(arguments).__name__} as arguments")
        if isinstance(made_of, Name):
            if made_of.name == "copyreg._reconstructor" and arguments and isinstance(arguments[0], Name):
                return self._reconstructed(*arguments)
            if made_of.name in _PLAIN:
                self._count(sum(map(_copied, arguments)))
                return _PLAIN[made_of.name](*arguments)
            value = self._construct(made_of.name, arguments)
            if value is not NotImplemented:
                return value
        return self._inert_object(made_of, arguments, {})

    def _reconstructed(self, made_of: Name, _base: Any = None, value: Any = None) -> Inert:
        """Return an object as protocols below 2 make it, by `copyreg._reconstructor`."""
        made = self._inert_object(made_of, (), {})
        self._count(_copied(value))
        if isinstance(value, dict):
            made.entries.update(value)
        elif isinstance(value, list | tuple):
            made.items.extend(value)
        return made

    def _inert_object(self, made_of: Any, arguments: tuple[Any, ...], keywords: dict[Any, Any]) -> Inert:
        if not isinstance(made_of, Name | Inert):
            raise TypeError(f"the pickle calls a {type(made_of).__name__}")
        name = made_of.name if isinstance(made_of, Name) else f"{made_of.name}(…)"
        self.inert.setdefault(name)
        return Inert(name, arguments, keywords)

    def _build(self, state: Any) -> None:
        target = self.stack[-1]
        if not isinstance(target, Inert):
            return  # attributes of a plain dict or a tensor, such as a state dict's `_metadata`
        both_dicts = isinstance(target.state, dict) and isinstance(state, dict)
        if both_dicts:
            self._count(len(target.state) + len(state))
        target.state = target.state | state if both_dicts else state


def _named(module: Any, name: Any) -> Name:
    if not isinstance(module, str) or not isinstance(name, str):
        raise TypeError("the pickle names a class by something that is no text")
    module = {"__builtin__": "builtins", "copy_reg": "copyreg"}.get(module, module)  # as Python 2 called them
    return Name(f"{module}.{name}")


def _pairs(values: list[Any]) -> dict[Any, Any]:
    if len(values) % 2:
        raise ValueError("the pickle has a key without a value")
    return dict(zip(_keys(values[::2]), values[1::2], strict=True))


def _dict(pairs: Any = ()) -> dict[Any, Any]:
    if isinstance(pairs, dict):
        return dict(pairs)
    entries = [(key, value) for key, value in pairs]
    return dict(zip(_keys([key for key, _ in entries]), (value for _, value in entries), strict=True))


def _set(values: Any = ()) -> set[Any]:
    return set(_keys(list(values)))


def _frozen(values: Any = ()) -> frozenset[Any]:
    return frozenset(_keys(list(values)))


def _keys(values: list[Any]) -> list[Any]:
    """Return `values` if none takes long to hash or compare, as a tuple whose parts share parts may; else raise."""
    for value in values:
        left = [value]
        for part in left:
            if isinstance(part, tuple) and len(left) + len(part) <= _MAX_KEY_PARTS:
                left.extend(part)  # the loop goes on with them
            elif not isinstance(part, str | bytes | float | complex | Inert | Name | Tensor | None) and not (
                isinstance(part, int) and part.bit_length() <= _MAX_KEY_BITS
            ):
                raise ValueError(
                    f"the pickle has a {type(value).__name__} as a key; short names or numbers were expected"
                )
    return values


def _copied(value: Any) -> int:
    """Return the work to copy `value`, in steps of the machine."""
    if isinstance(value, str | bytes | bytearray):
        return len(value) // _TEXT_COPIED_AT_ONCE
    return len(value) if isinstance(value, list | tuple | dict | set | frozenset) else 0


def _encoded(text: str, encoding: str) -> bytes:
    if encoding not in ("latin1", "latin-1"):
        raise ValueError(f"the pickle holds bytes in the encoding {encoding!r}")
    return text.encode("latin1")


def _bytes(content: Any = b"", encoding: str = "latin1") -> bytes:
    return _encoded(content, encoding) if isinstance(content, str) else memoryview(content).tobytes()


# Functions whose results are plain values, which `pickle` makes by a call.
_PLAIN: dict[str, Callable[..., Any]] = {
    "_codecs.encode": _encoded,
    "builtins.bytearray": _bytes,
    "builtins.bytes": _bytes,
    "builtins.complex": complex,
    "builtins.dict": _dict,
    "builtins.frozenset": _frozen,
    "builtins.list": lambda values=(): list(values),
    "builtins.set": _set,
    "builtins.tuple": lambda values=(): tuple(values),
    "collections.Counter": _dict,
    "collections.OrderedDict": _dict,
    "collections.defaultdict": lambda _factory=None, pairs=(): _dict(pairs),
    "torch.Size": lambda sizes=(): tuple(sizes),
    "torch.device": lambda kind, index=None: kind if index is None else f"{kind}:{index}",
    "torch.serialization._get_layout": lambda name: name,
}
