"""Finds the model for a request: by its name and version, or by an alias, which may split requests over several models.

Targets of aliases are looked up for each request, since models come and go while the server runs.
"""

import logging
import random
import reprlib
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, Protocol
from weakref import ref

from fuseline.serve.errors import InputError, UnknownModelError
from fuseline.serve.metrics.routing_metrics import AliasMetrics
from fuseline.serve.model import Model
from fuseline.serve.model_package import Manifest
from fuseline.serve.repository import Repository
from fuseline.serve.route_flags import Alias, Target, cumulated

_log = logging.getLogger(__name__)


class Finder(Protocol):
    """What finds the model for a request: `Routes`, or a `Repository` where there are no aliases."""

    def find(self, name: str, version: str = "") -> Model:
        """Return the model that a request of that name and version is for. Raises `UnknownModelError`."""
        ...


class AliasEntry(NamedTuple):
    """A target of an alias, for lists of what is served."""

    alias: str
    target: Target
    weight: float
    model: Model | None
    """Model that is the target now; None: it is not served, or no request is given to it."""


class Routes:
    """The models of a repository, under their own names and under aliases. A name of an alias is never a model's.

    A split gives each request to one target by its weight. A target that is not served, or that takes or answers
    something else than the first one that is served, is given none: the others take its share, which is logged when it
    begins and counted for each request. Where no target is left, the request fails.
    """

    def __init__(
        self,
        repository: Repository,
        aliases: Sequence[Alias] = (),
        metrics: AliasMetrics | None = None,
        *,
        draw: Callable[[], float] = random.random,
    ) -> None:
        """`draw` returns a number from 0 to below 1, and decides which target of a split a request is given to."""
        self._repository = repository
        self._aliases = {alias.name: _AliasRoute(alias, repository, metrics, draw) for alias in aliases}

    @property
    def finder(self) -> Finder:
        """What requests are found by: the repository itself where there are no aliases, so that they cost nothing."""
        return self if self._aliases else self._repository

    @property
    def aliases(self) -> tuple[str, ...]:
        """Names of the aliases."""
        return tuple(self._aliases)

    def __iter__(self) -> Iterator[Model]:
        """Go through the models of the repository."""
        return iter(self._repository)

    def find(self, name: str, version: str = "") -> Model:
        """Return the model for one request, by chance and weight where `name` is a split.

        A `version` chooses among the targets of an alias those of that version.

        Raises `UnknownModelError`.
        """
        route = self._aliases.get(name)
        return self._find_model(name, version) if route is None else route.choose(version)

    def first(self, name: str, version: str = "") -> Model:
        """Return the model that describes `name`: of an alias its first target that is served.

        Raises `UnknownModelError`.
        """
        route = self._aliases.get(name)
        return self._find_model(name, version) if route is None else route.served(version)[0]

    def served(self, name: str, version: str = "") -> list[Model]:
        """Return the models that requests of that name and version may be given to, at least one.

        For an empty `version` these are all versions of a model, and the targets of an alias.

        Raises `UnknownModelError`.
        """
        route = self._aliases.get(name)
        if route is not None:
            return route.served(version)
        found = self._find_model(name, version)
        return [found] if version else [model for model in self if model.name == found.name]

    def versions(self, name: str) -> list[str]:
        """Return the versions that requests to `name` may ask for; none where it is not served."""
        route = self._aliases.get(name)
        return list(self._repository.versions(name)) if route is None else route.versions()

    def entries(self) -> list[AliasEntry]:
        """Return every target of every alias."""
        return [entry for route in self._aliases.values() for entry in route.entries()]

    def check(self, *, models_come: bool = False) -> None:
        """Raise `InputError` if an alias has a model's name, or a target that is not served or differs from the first.

        Where `models_come` while the server runs, a target that is not served yet is no error.
        """
        names = {model.name for model in self}
        for name, route in self._aliases.items():
            if name in names:
                raise InputError(f"--alias {name}: a model of that name is served already; give the alias another name")
            route.check(models_come=models_come)

    def _find_model(self, name: str, version: str) -> Model:
        try:
            return self._repository.find(name, version)
        except UnknownModelError as error:
            if not self._aliases:
                raise
            raise UnknownModelError(f"{error}; aliases: {', '.join(sorted(self._aliases))}") from None


class _AliasRoute:
    """One alias."""

    def __init__(
        self, alias: Alias, repository: Repository, metrics: AliasMetrics | None, draw: Callable[[], float]
    ) -> None:
        self._alias = alias
        self._repository = repository
        self._metrics = metrics
        self._draw = draw
        # The targets of the last request, None where one was not served, and what follows from them. A model that is
        # unloaded must not be kept in memory by it.
        self._known: list[ref[Model] | None] | None = None
        self._choice = _Choice((), [])

    def choose(self, version: str) -> Model:
        models = self._models(version)
        if version:
            choice = self._choice_of(models)
        else:
            if not self._is_known(models):
                self._learn(models)
            choice = self._choice
        places = choice.places
        if not places:
            raise self._unknown(version)
        if len(places) == 1:
            place = places[0]
        else:
            drawn = self._draw() * choice.cumulated[-1]
            # A product may be rounded up to the sum itself.
            place = places[min(bisect_right(choice.cumulated, drawn), len(places) - 1)]
        model = models[place]
        assert model is not None
        if self._metrics is not None:
            self._metrics.requests(self._alias.name, model.name, model.version).add()
            if not version and len(places) < len(models):
                for missing in set(range(len(models))) - set(places):
                    self._metrics.missing(self._alias.name, str(self._alias.targets[missing])).add()
        return model

    def served(self, version: str) -> list[Model]:
        models = self._models(version)
        chosen = [model for place in self._choice_of(models).places if (model := models[place]) is not None]
        if not chosen:
            raise self._unknown(version)
        return chosen

    def versions(self) -> list[str]:
        versions: dict[str, None] = {}
        for target in self._alias.targets:
            served = self._repository.versions(target.model)
            versions |= dict.fromkeys(version for version in served if target.version in {"", version})
        return list(versions)

    def entries(self) -> list[AliasEntry]:
        alias, models = self._alias, self._models("")
        places = self._choice_of(models).places
        return [
            AliasEntry(alias.name, target, weight, models[place] if place in places else None)
            for place, (target, weight) in enumerate(zip(alias.targets, alias.weights, strict=True))
        ]

    def check(self, *, models_come: bool) -> None:
        first: Model | None = None
        for target in self._alias.targets:
            flag = f"--alias {self._alias.name}={target}"
            try:
                model = self._repository.find(target.model, target.version)
            except UnknownModelError as error:
                if not models_come:
                    raise InputError(f"{flag}: {error}") from None
                _log.warning("%s: %s; requests are given to it once it is served", flag, error)
                continue
            first = first or model
            if (difference := _difference(first.manifest, model.manifest)) is not None:
                raise InputError(
                    f"{flag}: {difference}; clients read the description of one of an alias's models, so all must take "
                    "and answer the same; export them alike"
                )

    def _models(self, version: str) -> list[Model | None]:
        """Return the model of each target; None where it is not served, or is of another version than the asked one."""
        models: list[Model | None] = []
        for target in self._alias.targets:
            if version and target.version not in {"", version}:
                models.append(None)
                continue
            try:
                models.append(self._repository.find(target.model, version or target.version))
            except UnknownModelError:
                models.append(None)
        return models

    def _is_known(self, models: list[Model | None]) -> bool:
        # A reference to a model that has gone leads to None, which doesn't stand for a target that was not served.
        return self._known is not None and all(
            known is None if model is None else known is not None and known() is model
            for model, known in zip(models, self._known, strict=True)
        )

    def _learn(self, models: list[Model | None]) -> None:
        """Note what the targets are now, and log those that are given no request."""
        self._known = [None if model is None else ref(model) for model in models]
        self._choice = self._choice_of(models)
        places = self._choice.places
        takers = " and ".join(str(self._alias.targets[place]) for place in places)
        for place, (target, model) in enumerate(zip(self._alias.targets, models, strict=True)):
            if place in places:
                continue
            first = models[places[0]] if places else None
            why = "is not served"
            if model is not None and first is not None:
                why = f"is left out: {_difference(first.manifest, model.manifest)}"
            then = f"its requests go to {takers}" if takers else "its requests fail"
            _log.warning("alias %s: %s %s; %s", self._alias.name, target, why, then)

    def _choice_of(self, models: list[Model | None]) -> "_Choice":
        first = next((model for model in models if model is not None), None)
        places = tuple(
            place
            for place, model in enumerate(models)
            if model is not None and first is not None and _difference(first.manifest, model.manifest) is None
        )
        return _Choice(places, cumulated([self._alias.weights[place] for place in places]))

    def _unknown(self, version: str) -> UnknownModelError:
        targets = ", ".join(map(str, self._alias.targets))
        if version and all(target.version not in {"", version} for target in self._alias.targets):
            return UnknownModelError(
                f"the alias {self._alias.name} leads to no version {reprlib.repr(version)}, it leads to {targets}; "
                "leave the version out, or ask for a model by its own name"
            )
        served = ", ".join(f"{model.name}:{model.version}" for model in self._repository) or "none"
        asked = f" in version {reprlib.repr(version)}" if version else ""
        return UnknownModelError(
            f"the alias {self._alias.name} leads to {targets}, which is not served{asked} now; served: {served}"
        )


class _Choice(NamedTuple):
    """The targets that requests are given to."""

    places: tuple[int, ...]
    """Their places among the alias's targets."""
    cumulated: list[float]
    """Running sums of their weights."""


def _difference(first: Manifest, other: Manifest) -> str | None:
    """Return what `other` takes or answers else than `first`, for people; None: nothing."""
    if first is other:
        return None
    facts = (
        ("input", _tensor(first), _tensor(other)),
        ("output", repr(first.output_name), repr(other.output_name)),
        ("task", first.task, other.task),
        ("number of classes", str(first.classes), str(other.classes)),
    )
    names = f"{other.name}:{other.version} and {first.name}:{first.version}"
    for what, its, others in facts:
        if its != others:
            return f"{names} differ in their {what}, {others} and {its}"
    for index, (its, others) in enumerate(zip(first.labels, other.labels, strict=True)):
        if its != others:
            return f"{names} differ in the label of class {index}, {reprlib.repr(others)} and {reprlib.repr(its)}"
    return None


def _tensor(manifest: Manifest) -> str:
    spec = manifest.input
    return f"{spec.name!r} {spec.datatype} {list(spec.row_shape)}"
