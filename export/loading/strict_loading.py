"""Strict loading of a checkpoint into the user's module: every tensor has a place, and every place a tensor."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from fuseline.export.checkpoint.checkpoint import Checkpoint, Naming
from fuseline.export.checkpoint.wrapper_prefixes import network_names
from fuseline.export.loading.users_code import users_errors
from fuseline.serve.errors import ArchitectureError

_COUNTER = "num_batches_tracked"
_NAMES_SHOWN = 6


@dataclass(frozen=True, slots=True)
class Loaded:
    """Which of the checkpoint's tensors were loaded where."""

    names: Mapping[str, str]
    """The module's tensor names to the checkpoint's, in the naming that fitted; without `num_batches_tracked`."""
    how: str
    """Which names of the checkpoint fitted, for people: `the file's own names`."""


@dataclass(frozen=True, slots=True)
class _Attempt:
    """The checkpoint under one of its namings, compared with the module."""

    how: str
    names: Mapping[str, str]
    """The module's names to those that the tensors must have in `naming`."""
    naming: Naming
    deviations: Mapping[str, list[str]]
    """`missing`, `left over` and `misshapen` to the tensors that are so, for people."""

    @property
    def count(self) -> int:
        return sum(map(len, self.deviations.values()))


def load_strictly(module: nn.Module, checkpoint: Checkpoint, reference: str) -> Loaded:
    """Load all tensors of `checkpoint` into `module`, which --factory `reference` built.

    The file's own names are tried first, as a prefix that the module has too is no wrapper's. Then one wrapper's prefix
    after the other is removed from them, and each result is tried alone and behind the module's own prefix. Last, the
    names of both are tried without their wrappers' prefixes. Shapes must be equal, as for torch's own strict loading,
    where (1,) fits a scalar, ().

    Raises:
        ArchitectureError: the tensors fit under none of these names; the message describes the nearest fit.
        InputError: the module's own code raises while it loads.
    """
    state = {name: value for name, value in module.state_dict().items() if isinstance(value, Tensor)}
    if lazy := [name for name, value in state.items() if is_lazy(value)]:
        raise ArchitectureError(
            f"{lazy[0]} of --factory {reference} has no shape yet (a lazy module); call the network once on an image "
            "before it is returned"
        )
    places = {name: tuple(value.shape) for name, value in state.items() if not name.endswith(_COUNTER)}
    nearest: _Attempt | None = None
    for attempt in _attempts(places, checkpoint):
        if nearest is None or attempt.count < nearest.count:
            nearest = attempt
        if not nearest.count:
            break
    assert nearest is not None
    if nearest.count:
        found = "; ".join(f"{kind}: {_some(items)}" for kind, items in nearest.deviations.items() if items)
        raise ArchitectureError(
            f"the checkpoint's tensors are not those of {type(module).__name__}, which --factory {reference} built; "
            f"nearest by {nearest.how}: {found}. Nothing is filled in or left out: build the network that was trained"
        )
    tensors = checkpoint.float32(nearest.naming)
    counters = {name: torch.tensor(0) for name in module.state_dict() if name.endswith(_COUNTER)}
    with users_errors(reference):
        # The module's own state is updated: it may hold values that aren't tensors, and modules' version numbers.
        own = module.state_dict()
        own.update(counters | {name: tensors[stored] for name, stored in nearest.names.items()})
        module.load_state_dict(own)
    return Loaded(nearest.names, nearest.how)


def _attempts(places: Mapping[str, tuple[int, ...]], checkpoint: Checkpoint) -> Iterator[_Attempt]:
    for naming in checkpoint.namings:
        yield _attempt(naming.described, {name: name for name in places}, places, naming)
        if prefix := _prefix(set(places), {name for name in naming.tensors if not name.endswith(_COUNTER)}):
            names = {name: name.removeprefix(prefix) for name in places}
            yield _attempt(f"{naming.described}, behind the module's own `{prefix}`", names, places, naming)
    wrappers = network_names({name: torch.empty(shape, device="meta") for name, shape in places.items()})
    bare = {name: new for name in places if (new := wrappers.renamed(name)) is not None}
    if len(set(bare.values())) == len(places):
        how = "names without wrappers' prefixes in the file and in the module"
        yield _attempt(how, bare, places, checkpoint.namings[-1])


def _attempt(how: str, names: Mapping[str, str], places: Mapping[str, tuple[int, ...]], naming: Naming) -> _Attempt:
    shapes = {
        name: tuple(getattr(value, "shape", ()))
        for name, value in naming.tensors.items()
        if not name.endswith(_COUNTER)
    }
    taken = set(names.values())
    deviations = {
        "missing": [f"{name} {place}" for name, place in places.items() if names[name] not in shapes],
        "left over": [f"{name} {shape}" for name, shape in shapes.items() if name not in taken],
        "misshapen": [
            f"{name} is {shapes[names[name]]}, expected {place}"
            for name, place in places.items()
            if names[name] in shapes and not _fits(shapes[names[name]], place)
        ],
    }
    return _Attempt(how, names, naming, deviations)


def _fits(shape: tuple[int, ...], place: tuple[int, ...]) -> bool:
    """Return whether `nn.Module._load_from_state_dict` takes `shape` for `place`: (1,) for (), but not () for (1,)."""
    return shape == place or (shape == (1,) and place == ())


def _prefix(places: set[str], names: set[str]) -> str:
    """Return the prefix that the module's names have before the checkpoint's; "" where no prefix makes them equal."""
    prefix = ""
    while places and places != names:
        heads = {name.partition(".")[0] for name in places}
        if len(heads) != 1 or any("." not in name for name in places):
            return ""
        prefix += f"{heads.pop()}."
        places = {name.partition(".")[2] for name in places}
    return prefix


def _some(items: list[str]) -> str:
    rest = len(items) - _NAMES_SHOWN
    return ", ".join(items[:_NAMES_SHOWN]) + (f" and {rest} more" if rest > 0 else "")
