"""The program of a TorchScript file, read from its text: every operator call with its constants, submodules inlined.

The reader follows the text as an interpreter would, but symbolically: a tensor is the call that returned it, a module
is its attributes in the file's pickle, and no operator on tensors is ever run. Numbers that depend on the pictures stay
unknown. Where the text branches on one, the branch that raises an error is not taken; any other such branch can't be
read. `training` is False, as it is after `.eval()`.
"""

import ast
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from fuseline.export.checkpoint.inert_objects import Inert, attributes_of
from fuseline.export.checkpoint.script_code import ScriptCode, UnreadableError
from fuseline.export.checkpoint.script_operators import MAX_KEPT_VALUES, Cell, Module, Named, Operators, Sizes, kind_of
from fuseline.export.program import Pictures, Program, Result, Size, Unknown, Weight

_MAX_CALL_DEPTH = 64
_GOES_ON = object()
# Operators that give logits, the likeliest first; features, other forms of the logits, or classes may come beside them.
_GIVE_LOGITS = (("linear", "addmm"), ("softmax", "log_softmax"))


def read_program(root: Inert, code: ScriptCode, constants: Callable[[], Any]) -> Program:
    """Return the program of `root`'s forward.

    Args:
        root: the module, as the file's pickle has it.
        code: the code of its classes.
        constants: returns the tensors that the code names `CONSTANTS.c0` and so on; called where it names one.

    Raises:
        UnreadableError: the code is damaged, out of bounds, branches on values of the pictures, or holds something
            that isn't known here; the message says what.
    """
    try:
        return _Reader(code, constants).program(root)
    except RecursionError as error:
        raise UnreadableError("its code nests too deeply") from error
    except (
        TypeError,
        ValueError,
        ArithmeticError,
        LookupError,
        AttributeError,
    ) as error:  # code that contradicts itself
        raise UnreadableError(f"its code contradicts itself ({type(error).__name__}: {str(error)[:100]})") from error


class _Reader:
    def __init__(self, code: ScriptCode, constants: Callable[[], Any]) -> None:
        self._code = code
        self._constants = constants
        self._operators = Operators()
        self._attributes: dict[str, Any] = {}
        self._depth = 0

    def program(self, root: Inert) -> Program:
        found = self._run_method(Module(root, ""), "forward", [Cell(Pictures())], {})
        if isinstance(found, dict) and "logits" in found:
            found = found["logits"]
        if isinstance(found, list | tuple | dict):
            found = self._logits_among([*(found.values() if isinstance(found, dict) else found)], found)
        if not isinstance(found, Cell) or isinstance(found.value, Weight):
            raise UnreadableError(f"its forward returns {kind_of(found)}; one tensor of logits was expected")
        return Program(tuple(self._operators.calls), found.value)

    def _logits_among(self, returned: list[Any], whole: Any) -> Any:
        """Return the only tensor that a linear layer gave, else the only one of a softmax; `whole` if there is none."""
        while len(returned) == 1:
            (whole,) = returned
            if not isinstance(whole, list | tuple | dict):
                return whole
            returned = [*(whole.values() if isinstance(whole, dict) else whole)]
        for operators in _GIVE_LOGITS:
            found = [
                value
                for value in returned
                if isinstance(value, Cell)
                and isinstance(value.value, Result)
                and self._operators.calls[value.value.call].operator in operators
            ]
            if found:
                return found[0] if len({value.value for value in found}) == 1 else whole
        return whole

    def _run_method(self, module: Module, name: str, given: list[Any], keywords: dict[str, Any]) -> Any:
        function = self._code.method(module.inert.name, name)
        if function is None:
            raise UnreadableError(f"the class {module.inert.name[:100]} has no code of its method {name[:60]}")
        return self._run(function, [module, *given], keywords, module.path)

    def _run(self, function: ast.FunctionDef, given: list[Any], keywords: dict[str, Any], layer: str) -> Any:
        parameters = [argument.arg for argument in function.args.args]
        defaults = function.args.defaults
        names: dict[str, Any] = {}
        for name, default in zip(parameters[len(parameters) - len(defaults) :], defaults, strict=True):
            names[name] = self._value(default, {}, layer)
        if len(given) > len(parameters):
            raise UnreadableError(f"{function.name[:60]} is given {len(given)} arguments and takes {len(parameters)}")
        names |= dict(zip(parameters, given, strict=False)) | keywords
        self._depth += 1
        if self._depth > _MAX_CALL_DEPTH:
            raise UnreadableError(f"its calls nest beyond {_MAX_CALL_DEPTH} levels")
        try:
            returned = self._block(function.body, names, layer)
        finally:
            self._depth -= 1
        return None if returned is _GOES_ON else returned

    def _block(self, statements: Sequence[ast.stmt], names: dict[str, Any], layer: str) -> Any:
        """Run the statements; return what they return, or `_GOES_ON`."""
        for statement in statements:
            self._operators.spend(1)
            match statement:
                case ast.Assign(targets=[ast.Name(id=name)]):
                    names[name] = self._value(statement.value, names, layer)
                case ast.Assign(targets=[ast.Tuple(elts=targets)]):
                    values = self._value(statement.value, names, layer)
                    if isinstance(values, Cell):
                        values = [
                            self._operators.on_tensors("item", [values, place], {}, layer)
                            for place in range(len(targets))
                        ]
                    if not isinstance(values, list | tuple):
                        raise UnreadableError(f"it takes {kind_of(values)} apart, whose parts only running it gives")
                    for target, value in zip(targets, values, strict=True):
                        if not isinstance(target, ast.Name):
                            raise _unknown_syntax(target)
                        names[target.id] = value
                case ast.Expr():
                    self._value(statement.value, names, layer)
                case ast.Return():
                    return None if statement.value is None else self._value(statement.value, names, layer)
                case ast.If():
                    if (returned := self._branch(statement, names, layer)) is not _GOES_ON:
                        return returned
                case ast.For(target=ast.Name(id=name)):
                    items = self._value(statement.iter, names, layer)
                    if not isinstance(items, list | tuple):
                        raise UnreadableError("it loops as often as the pictures decide")
                    for item in items:
                        names[name] = item
                        if (returned := self._block(statement.body, names, layer)) is not _GOES_ON:
                            return returned
                case ast.Pass():
                    pass
                case _:
                    raise _unknown_syntax(statement)
        return _GOES_ON

    def _branch(self, statement: ast.If, names: dict[str, Any], layer: str) -> Any:
        condition = self._value(statement.test, names, layer)
        if isinstance(condition, bool | int | float | None):
            return self._block(statement.body if condition else statement.orelse, names, layer)
        raising = [_raises(body) for body in (statement.body, statement.orelse)]
        if raising.count(True) != 1:
            raise UnreadableError(f"{layer or 'its forward'} branches on values of the pictures")
        return self._block(statement.orelse if raising[0] else statement.body, names, layer)

    def _value(self, node: ast.expr, names: dict[str, Any], layer: str) -> Any:
        self._operators.spend(1)
        match node:
            case ast.Constant(value=value) if value is None or isinstance(value, bool | int | float | str):
                return value
            case ast.Name(id=name):
                if name in names:
                    return names[name]
                return Named({"inf": "torch.inf"}.get(name, name))
            case ast.UnaryOp(op=ast.USub()):
                return -self._value(node.operand, names, layer)
            case ast.UnaryOp(op=ast.Not()):
                return self._operators.apply("__not__", [self._value(node.operand, names, layer)], {}, layer)
            case ast.List() | ast.Tuple():
                values = [self._value(item, names, layer) for item in node.elts]
                return values if isinstance(node, ast.List) else tuple(values)
            case ast.Dict(keys=keys):
                found = {
                    self._value(key, names, layer): value for key, value in zip(keys, node.values, strict=True) if key
                }
                return {key: self._value(value, names, layer) for key, value in found.items()}
            case ast.Attribute(attr=name):
                return self._attribute(self._value(node.value, names, layer), name)
            case ast.Subscript():
                return self._item(self._value(node.value, names, layer), self._value(node.slice, names, layer))
            case ast.IfExp():
                condition = self._value(node.test, names, layer)
                if not isinstance(condition, bool | int | float | None):
                    raise UnreadableError(f"{layer or 'its forward'} branches on values of the pictures")
                return self._value(node.body if condition else node.orelse, names, layer)
            case ast.Call():
                return self._call(node, names, layer)
        raise _unknown_syntax(node)

    def _attribute(self, owner: Any, name: str) -> Any:
        if isinstance(owner, Named):
            if owner.name == "CONSTANTS":
                path = f"CONSTANTS.{name}"
                if path not in self._attributes:
                    self._attributes[path] = self._of_file(self._constants()[int(name.removeprefix("c"))], path)
                return self._attributes[path]
            return Named(f"{owner.name}.{name}")
        if not isinstance(owner, Module):
            raise UnreadableError(f"it asks for {name[:60]} of {kind_of(owner)}")
        if name == "training":
            return False
        attributes = attributes_of(owner.inert)
        if name in attributes:
            path = f"{owner.path}.{name}" if owner.path else name
            if path not in self._attributes:  # kept, so that an in-place operator's change stays
                self._attributes[path] = self._of_file(attributes[name], path)
            return self._attributes[path]
        constant = self._code.constant(owner.inert.name, name)
        if constant is None:
            raise UnreadableError(f"the module {owner.path[:100] or 'itself'} has no attribute {name[:60]}")
        return self._value(constant, {}, "")

    def _of_file(self, value: Any, path: str) -> Any:
        self._operators.spend(1)
        if isinstance(value, Tensor):
            few = not value.is_complex() and 0 < value.numel() <= MAX_KEPT_VALUES
            values = tuple(map(float, value.flatten().tolist())) if few else ()
            return Cell(Weight(path, tuple(value.shape), values))
        if isinstance(value, Inert):
            return Module(value, path)
        if isinstance(value, list | tuple):
            return type(value)(self._of_file(item, f"{path}.{index}") for index, item in enumerate(value))
        return value if value is None or isinstance(value, bool | int | float | str) else Unknown()

    def _item(self, owner: Any, key: Any) -> Any:
        if isinstance(owner, dict) or (isinstance(owner, list | tuple) and isinstance(key, int)):
            return owner[key]
        if isinstance(owner, Named):  # List[int]
            return owner
        if isinstance(owner, Sizes) and isinstance(key, int):
            return Size(owner.of, key)
        return Unknown()

    def _call(self, node: ast.Call, names: dict[str, Any], layer: str) -> Any:
        given = [self._value(argument, names, layer) for argument in node.args]
        keywords = {word.arg: self._value(word.value, names, layer) for word in node.keywords if word.arg}
        if isinstance(node.func, ast.Attribute):
            owner = self._value(node.func.value, names, layer)
            if isinstance(owner, Module):
                return self._run_method(owner, node.func.attr, given, keywords)
            target = self._attribute(owner, node.func.attr)
        else:
            target = self._value(node.func, names, layer)
        if not isinstance(target, Named):
            raise UnreadableError(f"it calls {kind_of(target)}")
        if target.name.startswith("__torch__."):
            if (function := self._code.function(target.name)) is None:
                raise UnreadableError(f"the function {target.name[:100]} has no code")
            return self._run(function, given, keywords, layer)
        if target.name == "getattr":
            return self._attribute(*given)
        return self._operators.apply(target.name.rpartition(".")[2], given, keywords, layer)


def _raises(statements: Sequence[ast.stmt]) -> bool:
    """Return whether a block raises an error, perhaps after it has made the text."""
    return any(
        isinstance(statement, ast.Expr)
        and isinstance(statement.value, ast.Call)
        and isinstance(statement.value.func, ast.Attribute)
        and statement.value.func.attr == "RaiseException"
        for statement in statements
    )


def _unknown_syntax(node: ast.AST) -> UnreadableError:
    return UnreadableError(f"its code has a {type(node).__name__} in line {getattr(node, 'lineno', 0)}")
