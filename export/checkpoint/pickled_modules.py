"""The state dict of a module that was pickled whole, or saved as TorchScript, read from its attributes.

A `torch.nn.Module` has its tensors in `_parameters` and `_buffers` and its children in `_modules`; a TorchScript module
has all of them side by side. None of the module's code is run.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from fuseline.export.checkpoint.inert_objects import Inert, Name, attributes_of
from fuseline.export.checkpoint.pickled_tensors import UnusableTensor

_MAX_MODULES = 100_000
_MAX_NESTING = 64
_MAX_TENSORS = 100_000
_MAX_ATTRIBUTES = 3_000_000
_MAX_NAME_LENGTH = 1000
_WEIGHT_HOOKS = ("torch.nn.utils.prune.", "torch.nn.utils.weight_norm.WeightNorm")
_COMPILED = "._dynamo.eval_frame.OptimizedModule"
_SCRIPT_PREFIX = "__torch__."


@dataclass(slots=True)
class ModuleState:
    """What a module holds."""

    name: str
    """Full name of its class: `torchvision.models.resnet.ResNet`."""
    tensors: dict[str, Any] = field(default_factory=dict)
    """Name in the state dict to Tensor or UnusableTensor."""
    layer_settings: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Layer name, `""` for the root, to its plain attributes; `type` and `class` are the short and the full name of its
    class, `hooks` and `buffers` the names of forward hooks and of buffers that a state dict leaves out, if there are
    any. Empty for a TorchScript module."""
    modules: int = 0
    """Number of modules that were walked; one that two others hold counts twice."""
    attributes: int = 0
    """Number of attributes that were read; those of a shared module count each time."""
    classes: set[str] = field(default_factory=set)
    """Names of the classes of all its modules."""


def is_module(value: Any) -> bool:
    """Return whether `value` is an inert object that was a module."""
    return isinstance(value, Inert) and (value.name.startswith(_SCRIPT_PREFIX) or "_modules" in _content(value))


def state_of_module(module: Inert) -> ModuleState:
    """Return what `module` would give as its state dict, and the settings of its layers.

    Raises:
        ValueError: a module holds itself; or the nesting, a name, or the number of modules, tensors or attributes is
            out of bounds.
    """
    state = ModuleState(module.name)
    _walk(module, "", state, frozenset())
    return state


def _walk(module: Inert, prefix: str, state: ModuleState, above: frozenset[int]) -> None:
    state.modules += 1
    if id(module) in above or len(above) > _MAX_NESTING or state.modules > _MAX_MODULES:
        raise ValueError(f"the module {module.name} holds itself, or is nested beyond {_MAX_NESTING} levels")
    content = _content(module)
    is_script = "_modules" not in content
    state.classes.add(module.name)
    children = content if is_script else content["_modules"]
    groups = (content, content.get("_parameters"), content.get("_buffers"), children)
    state.attributes += sum(len(group) for group in groups if isinstance(group, dict))
    for name, tensor in _tensors(content, is_script=is_script):
        state.tensors[_joined(prefix, name)] = tensor
    if state.attributes > _MAX_ATTRIBUTES or len(state.tensors) > _MAX_TENSORS:
        raise ValueError(
            f"the module {state.name} has more than {_MAX_TENSORS} tensors or {_MAX_ATTRIBUTES} attributes"
        )
    if not is_script:
        state.layer_settings[prefix.removesuffix(".")] = _settings(module, content)
    for name, child in children.items() if isinstance(children, dict) else ():
        if is_module(child):
            _walk(child, f"{_joined(prefix, name)}.", state, above | {id(module)})


def _joined(prefix: str, name: Any) -> str:
    if not isinstance(name, str) or len(prefix) + len(name) > _MAX_NAME_LENGTH:
        raise ValueError(f"a module's name must be text of at most {_MAX_NAME_LENGTH} characters with those above it")
    return prefix + name


def _tensors(content: dict[str, Any], *, is_script: bool) -> Iterator[tuple[str, Any]]:
    if is_script:
        groups = [content]
    else:
        left_out = content.get("_non_persistent_buffers_set")
        left_out = left_out if isinstance(left_out, set | list | tuple) else ()
        buffers = content.get("_buffers")
        buffers = buffers if isinstance(buffers, dict) else {}
        groups = [content.get("_parameters") or {}, {n: v for n, v in buffers.items() if n not in left_out}]
    for group in groups:
        for name, tensor in group.items() if isinstance(group, dict) else ():
            if isinstance(tensor, Tensor | UnusableTensor):
                yield name, tensor


def _settings(module: Inert, content: dict[str, Any]) -> dict[str, Any]:
    plain = {
        name: value
        for name, value in content.items()
        if isinstance(name, str) and not name.startswith("_") and name not in ("training", "type") and _is_plain(value)
    }
    left_out, buffers = content.get("_non_persistent_buffers_set"), content.get("_buffers")
    extra: dict[str, Any] = {"type": module.name.rpartition(".")[2], "class": module.name}
    if isinstance(left_out, set) and isinstance(buffers, dict):
        extra |= {"buffers": sorted(str(n) for n in left_out if isinstance(buffers.get(n), Tensor))} if left_out else {}
    hooks = [name for name in ("_forward_hooks", "_forward_pre_hooks") if _foreign_hooks(content.get(name))]
    # Methods that were replaced on this very object.
    methods = [name for name, value in content.items() if _is_forward(name) and isinstance(value, Inert | Name)]
    return plain | extra | ({"hooks": hooks} if hooks else {}) | ({"methods": methods} if methods else {})


def _is_forward(name: Any) -> bool:
    return isinstance(name, str) and name.lstrip("_").startswith("forward") and "hooks" not in name


def _foreign_hooks(hooks: Any) -> bool:
    """Return whether there are other hooks than those that compute a weight from its parts, which the tensors tell."""
    return any(
        not (isinstance(hook, Inert) and hook.name.startswith(_WEIGHT_HOOKS)) for hook in _entries(hooks).values()
    )


def _entries(value: Any) -> dict[Any, Any]:
    return value if isinstance(value, dict) else attributes_of(value)


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return len(value) <= 8 and all(item is None or isinstance(item, bool | int | float | str) for item in value)
    return value is None or isinstance(value, bool | int | float | str)


def _content(module: Inert) -> dict[str, Any]:
    """Return a module's attributes; torch.fx pickles them as the first argument of the function that rebuilds it."""
    first = module.arguments[0] if module.arguments and "reduce_" in module.name else None
    if module.arguments and module.name.endswith(_COMPILED) and isinstance(module.arguments[0], Inert):
        return {"_modules": {"_orig_mod": module.arguments[0]}}
    content = attributes_of(module) or first
    return content if isinstance(content, dict) else {}
