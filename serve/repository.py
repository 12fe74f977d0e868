"""The models of one server, by name and version."""

import reprlib
from collections.abc import Iterable, Iterator, Sequence

from fuseline.serve.errors import InputError, UnknownModelError
from fuseline.serve.model import Model
from fuseline.serve.version_order import version_order


class Repository:
    """Named models, each in one or several versions.

    As `fuseline.serve.model_control.doors.Doors` it is the only door of a process that does everything: what is served
    changes between two turns of the event loop.
    """

    def __init__(self, models: Iterable[Model] = ()) -> None:
        # The versions of each name, the highest first.
        self._models: dict[str, dict[str, Model]] = {}
        # The highest version of each name, which most requests ask for.
        self._highest: dict[str, Model] = {}
        for model in models:
            self.add(model)

    def __iter__(self) -> Iterator[Model]:
        """Go through all versions of all models."""
        return (model for versions in self._models.values() for model in versions.values())

    def add(self, model: Model) -> None:
        """Serve `model` from now on. Raises `InputError` if that version of its name is served already."""
        if model.version in self._models.get(model.name, {}):
            raise InputError(
                f"two packages are named {model.name!r} and have version {model.version!r}; export one of them again "
                "with another --name, or serve them apart"
            )
        self.serve([*self, model])

    def serve(self, models: Iterable[Model]) -> None:
        """Serve `models`, and no other, from now on."""
        by_name: dict[str, list[Model]] = {}
        for model in models:
            by_name.setdefault(model.name, []).append(model)
        self._models = {
            name: {
                model.version: model
                for model in sorted(versions, key=lambda each: version_order(each.version), reverse=True)
            }
            for name, versions in by_name.items()
        }
        self._highest = {name: next(iter(versions.values())) for name, versions in self._models.items()}

    def versions(self, name: str) -> tuple[str, ...]:
        """Return the served versions of `name`, the highest first; none where it is not served."""
        return tuple(self._models.get(name, ()))

    def find(self, name: str, version: str = "") -> Model:
        """Return the model of that name and version; if empty, they stand for the only name and the highest version.

        Raises `UnknownModelError`.
        """
        highest = self._highest.get(name) or self._named(name)
        if not version:
            return highest
        model = self._models[highest.name].get(version)
        if model is None:
            served = ", ".join(map(repr, self._models[highest.name]))
            raise UnknownModelError(
                f"there is no version {reprlib.repr(version)} of {highest.name} here; served: {served}"
            )
        return model

    async def publish(self, served: Sequence[Model]) -> None:
        """See `fuseline.serve.model_control.doors.Doors.publish`."""
        self.serve(served)

    async def retire(self, model: Model) -> None:
        """See `fuseline.serve.model_control.doors.Doors.retire`: a request finds its model and enters its batcher, or
        reserves room there, in one turn of the event loop, so there is nothing to wait for.
        """

    async def close(self) -> None:
        """Let every model finish what it has admitted, then release it."""
        for model in self:
            await model.close()

    def _named(self, name: str) -> Model:
        if not name and len(self._highest) == 1:
            return next(iter(self._highest.values()))
        served = ", ".join(sorted(self._highest)) or "none"
        if not name:
            raise UnknownModelError(f"the request names no model and this server has several; name one of: {served}")
        raise UnknownModelError(f"there is no model {reprlib.repr(name)} here; served: {served}")
