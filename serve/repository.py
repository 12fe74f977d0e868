"""The models of one server, by name."""

import reprlib
from collections.abc import Iterable, Iterator

from fuseline.serve.errors import InputError, UnknownModelError
from fuseline.serve.model import Model


class Repository:
    """Named models. A name is served by one model at a time."""

    def __init__(self, models: Iterable[Model] = ()) -> None:
        self._models: dict[str, Model] = {}
        for model in models:
            self.add(model)

    def __iter__(self) -> Iterator[Model]:
        return iter(self._models.values())

    def add(self, model: Model) -> None:
        """Serve `model` from now on. Raises `InputError` if its name is served already."""
        if model.name in self._models:
            raise InputError(
                f"two packages are named {model.name!r}; export one of them again with another --name, "
                "or serve them apart"
            )
        self._models[model.name] = model

    def find(self, name: str, version: str = "") -> Model:
        """Return the model of that name and version; if empty, they stand for the only model and the served version.

        Raises `UnknownModelError`.
        """
        model = self._named(name)
        if version not in {"", model.version}:
            raise UnknownModelError(
                f"there is no version {reprlib.repr(version)} of {model.name} here; served: {model.version!r}"
            )
        return model

    async def close(self) -> None:
        """Let every model finish what it has admitted, then release it."""
        for model in self:
            await model.close()

    def _named(self, name: str) -> Model:
        model = self._models.get(name)
        if model is not None:
            return model
        if not name and len(self._models) == 1:
            return next(iter(self._models.values()))
        served = ", ".join(sorted(self._models)) or "none"
        if not name:
            raise UnknownModelError(f"the request names no model and this server has several; name one of: {served}")
        raise UnknownModelError(f"there is no model {reprlib.repr(name)} here; served: {served}")
