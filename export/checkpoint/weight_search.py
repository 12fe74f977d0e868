"""The search for the weights in a checkpoint's contents, and the choice of the plain or the averaged (EMA) ones."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from fuseline.export.checkpoint.inert_objects import Inert, attributes_of
from fuseline.export.checkpoint.pickled_modules import ModuleState, is_module, state_of_module
from fuseline.export.checkpoint.quantised_weights import quantisation_in
from fuseline.export.checkpoint.taken_weights import key_to_take, prefix_to_take
from fuseline.export.checkpoint.training_parts import is_ema
from fuseline.export.checkpoint.weights import Weights, is_tensor
from fuseline.export.checkpoint.wrapper_prefixes import averaged_group, printable
from fuseline.serve.errors import CheckpointError

CONTAINERS = (
    "state_dict",
    "model",
    "net",
    "model_state_dict",
    "model_state",
    "network",
    "module",
    "weights",
    "shadow",
    "net_state_dict",
    "model_weights",
    "params",
    "student",
    "state",
)
"""Keys that hold the weights, the likeliest first. Composer's are in `state`, where an optimizer's state is too."""

_MAX_NESTING = 8
_OPTIMIZER_KEYS = {"state", "param_groups"}


def find_weights(root: Any, path: Path, *, prefer_ema: bool, take: str | None = None) -> Weights:
    """Return the weights in `root`, which may be nested in containers, and in modules that were pickled whole.

    Args:
        take: the key that holds the weights, or the prefix of their names, or a key, a dot, and a key or prefix within.

    Raises:
        CheckpointError: there are no weights, none at `take`, or, with `prefer_ema`, no averaged ones. The message says
            what is there.
    """
    search = _Search(path)
    weights = search.run(root, prefer_ema=prefer_ema, take=take)
    names = [name for name in weights.named if isinstance(name, str)]
    if sign := quantisation_in(names, weights.module_classes):
        raise CheckpointError(
            f"{path} holds a quantised network: {sign}. Dense float weights were expected: save the float model, "
            "before quantisation; Fuseline makes FP16 and INT8 from it"
        )
    if not weights.tensors:
        raise _no_weights(root, weights, path, list(search.others(weights.levels[0])))
    if prefer_ema and not weights.are_ema:
        keys = _shown_keys(weights.levels[0])
        raise CheckpointError(
            f"{path} holds no EMA weights, which --ema asks for; found {weights.notes[0] if weights.notes else keys}. "
            "EMA weights are looked for under keys such as ema, model_ema, ema_state_dict; leave --ema out to take "
            "the plain weights"
        )
    return weights


class _Search:
    """One walk from the root to the weights, which opens each module once."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._opened: dict[int, Mapping[Any, Any]] = {}
        self._states: dict[int, ModuleState] = {}
        self._holds: dict[int, bool] = {}

    def run(self, root: Any, *, prefer_ema: bool, take: str | None) -> Weights:
        level = root
        to_take = take or ""
        notes: list[str] = []
        weights = Weights({}, [], notes)
        while len(weights.levels) <= _MAX_NESTING:
            content = self._content(level)
            weights.levels.append(content)
            self._note_module(level, weights)
            if key := next((key for key in key_to_take(content, to_take) if self._content(content[key])), None):
                level, to_take, weights.are_taken = content[key], to_take.removeprefix(key).removeprefix("."), True
                notes.append(f"weights taken from `{printable(key)}`, as --take says")
                continue
            plain, ema = self._candidates(content)
            own = any(is_tensor(value) for value in content.values())
            takes_ema = bool(ema) and not weights.are_ema and (prefer_ema or not (plain or own))
            if not takes_ema and not plain:
                break
            taken, level = next(iter((ema if takes_ema else plain).items()))
            notes.append(f"{'EMA weights' if takes_ema else 'weights'} taken from `{printable(taken)}`")
            if passed := [key for key in (plain | self.others(content)) if key != taken and key not in ema]:
                shown = ", ".join(map(printable, passed))
                notes[-1] += f"; also there and not taken: {shown}; --take {printable(passed[0])} takes that"
            if takes_ema and not prefer_ema:
                notes[-1] += "; no plain weights are there"
            elif ema and not takes_ema and not weights.are_ema:
                notes[-1] += f"; EMA weights are in `{next(iter(ema))}`: --ema takes them"
            weights.are_ema = weights.are_ema or takes_ema
        if ema and not weights.are_ema:
            notes.append(f"EMA weights are in `{next(iter(ema))}`: --ema takes them")
        weights.named = dict(weights.levels[-1])
        if to_take:
            self._take_names(weights, to_take)
        self._choose_among_names(weights, prefer_ema=prefer_ema)
        return weights

    def _candidates(self, content: Mapping[Any, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return key -> value of plain and of averaged weights, each with the likeliest first."""
        keys = [key for key in CONTAINERS if not (key == "state" and "param_groups" in content)]
        plain = {key: content[key] for key in keys if self._holds_tensors(content.get(key))}
        own = any(is_tensor(value) for value in content.values())
        if not plain and not own and len(others := self.others(content)) == 1:
            plain = others
        ema = self._averaged(content)
        # Lightning's WeightAveraging has the averaged weights in `state_dict`, the plain ones beside it.
        if self._holds_tensors(content.get("current_model_state")):
            ema = {key: value for key, value in plain.items() if key == "state_dict"} | ema
            return {"current_model_state": content["current_model_state"]}, ema
        for name, state in self._content(content.get("callbacks")).items():
            found = self._averaged(self._content(state))
            ema |= {f"callbacks.{printable(str(name))}.{key}": value for key, value in found.items()}
        return plain, ema

    def _averaged(self, content: Mapping[Any, Any]) -> dict[str, Any]:
        return {
            key: value
            for key, value in content.items()
            if isinstance(key, str) and is_ema(key) and self._holds_tensors(value)
        }

    def others(self, content: Mapping[Any, Any]) -> dict[str, Any]:
        """Return the entries with a network's kernels whose keys are none of `CONTAINERS` or of averaged weights."""
        return {
            key: value
            for key, value in content.items()
            if isinstance(key, str) and key not in CONTAINERS and not is_ema(key) and self._holds_kernels(value)
        }

    def _holds_kernels(self, value: Any) -> bool:
        levels = [self._content(value)]
        levels += [self._content(levels[0].get(key)) for key in CONTAINERS]
        return any(isinstance(item, Tensor) and item.ndim == 4 for level in levels for item in level.values())

    def _take_names(self, weights: Weights, take: str) -> None:
        """Keep the weights behind the prefix `take`."""
        names = [name for name in weights.named if isinstance(name, str)]
        keys = list(self.others(weights.levels[0]) | self._candidates(weights.levels[0])[0])
        group = prefix_to_take(names, take, keys, self._path)
        weights.keep_behind(group, [name for name in names if name.startswith(group)])
        weights.notes.append(f"weights taken from `{printable(group)}`, as --take says")
        weights.are_taken = True

    def _choose_among_names(self, weights: Weights, *, prefer_ema: bool) -> None:
        """Keep the plain or the averaged weights of a module that holds both: `model.*` and `ema.ema_model.*`."""
        while group_of := {
            name: group for name in weights.named if isinstance(name, str) and (group := averaged_group(name))
        }:
            rest = {name: value for name, value in weights.named.items() if name not in group_of}
            group = next(iter(group_of.values()))
            has_rest = any(len(getattr(value, "shape", ())) > 1 for value in rest.values())
            # In a container of averaged weights, the others are the plain copy that they were made from.
            if not (prefer_ema or weights.are_ema) and has_rest:
                weights.named = rest
                weights.notes.append(f"EMA weights in `{group}` not taken: --ema takes them")
                return
            weights.keep_behind(group, [name for name, own in group_of.items() if own == group])
            weights.notes.append(f"EMA weights taken from `{group}`")
            weights.are_ema = True

    def _note_module(self, level: Any, weights: Weights) -> None:
        state = self._states.get(id(level))
        if state is not None:
            weights.layer_settings = state.layer_settings
            weights.module_classes = state.classes
            weights.notes.append(f"weights read from the attributes of the module `{state.name}`; its code was not run")

    def _content(self, value: Any) -> Mapping[Any, Any]:
        """Return a module's tensors by name, an inert object's entries and attributes, or a dict as it is."""
        if isinstance(value, dict):
            return value
        if not isinstance(value, Inert):
            return {}
        if id(value) not in self._opened:
            if is_module(value):
                try:
                    state = state_of_module(value)
                except ValueError as error:
                    raise CheckpointError(f"{self._path}: {error}; save model.state_dict()") from error
                self._states[id(value)] = state
                self._opened[id(value)] = state.tensors
            else:
                self._opened[id(value)] = attributes_of(value)
        return self._opened[id(value)]

    def _holds_tensors(self, value: Any, nesting: int = 0) -> bool:
        if id(value) not in self._holds:
            self._holds[id(value)] = False  # until it was searched, so that the search of one that holds itself ends
            self._holds[id(value)] = self._look_for_tensors(value, nesting)
        return self._holds[id(value)]

    def _look_for_tensors(self, value: Any, nesting: int) -> bool:
        content = self._content(value)
        if any(is_tensor(item) for item in content.values()):
            return True
        inner = [item for key, item in content.items() if key in CONTAINERS or (isinstance(key, str) and is_ema(key))]
        return nesting < _MAX_NESTING and any(self._holds_tensors(item, nesting + 1) for item in inner)


def _shown_keys(content: Mapping[Any, Any]) -> str:
    """Return the first few keys, for a message."""
    return ", ".join(repr(key)[:60] if isinstance(key, str | int) else type(key).__name__ for key in list(content)[:8])


def _is_state(value: Any) -> bool:
    return isinstance(value, dict) and any(is_tensor(item) for item in value.values())


def _no_weights(root: Any, weights: Weights, path: Path, others: Sequence[str]) -> CheckpointError:
    if isinstance(root, Inert) and weights.module_classes:
        return CheckpointError(
            f"{path} holds the module {root.name} without any tensors among its attributes. A frozen TorchScript file "
            "(torch.jit.freeze) keeps its weights as constants of its program, which Fuseline never runs: save the "
            "state dict of the model that it was made from: torch.save(model.state_dict(), PATH)"
        )
    if isinstance(root, Inert) and not weights.levels[0]:
        return CheckpointError(f"{path} holds an object of {root.name}; expected a state dict: names with tensors")
    places = [place for place, item in enumerate(root) if _is_state(item)] if isinstance(root, list | tuple) else []
    if places:
        target = path.with_name(f"{path.stem}.state_dict.pt")
        return CheckpointError(
            f"{path} holds a {type(root).__name__} whose item {places[0]} is a state dict; a state dict alone was "
            f"expected. Save it:\n    import torch\n    torch.save(torch.load({str(path)!r}, map_location='cpu')"
            f"[{places[0]}], {str(target)!r})"
        )
    if not isinstance(root, dict | Inert):
        return CheckpointError(f"{path} holds a {type(root).__name__}; expected a state dict: names with tensors")
    content = weights.levels[0]
    keys = _shown_keys(content) or "none"
    if any(level.keys() >= _OPTIMIZER_KEYS for level in (content, attributes_of(content.get("optimizer")))):
        return CheckpointError(
            f"{path} holds the state of an optimizer and no weights: its keys are {keys}. Give the file that holds the "
            "model, or save it: torch.save(model.state_dict(), PATH)"
        )
    if others:
        shown = ", ".join(f"{printable(key)!r}" for key in others)
        return CheckpointError(
            f"{path} holds several networks, at {shown}, and nothing says which one is meant: --take "
            f"{printable(others[0])} takes the first"
        )
    inner = [value for outer in content.values() if isinstance(outer, dict) for value in outer.values()]
    if any(isinstance(value, Inert) and value.name.startswith("numpy.") for value in (*content.values(), *inner)):
        return CheckpointError(
            f"{path} holds NumPy arrays where tensors were expected, as {keys}. Where they have the names and the "
            "shapes of a PyTorch state dict, save them as tensors: "
            "torch.save({name: torch.from_numpy(array) for name, array in state.items()}, PATH)"
        )
    return CheckpointError(
        f"{path} holds no tensors where they were expected: at its root or in {', '.join(CONTAINERS)}; its keys are "
        f"{keys}. Save the state dict: torch.save(model.state_dict(), PATH)"
    )
