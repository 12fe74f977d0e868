"""Parameters of a request to load a model."""

import reprlib
from collections.abc import Iterable

from fuseline.serve.errors import RequestError


def check_load_parameters(names: Iterable[str]) -> None:
    """Raise `RequestError` if a request to load a model has parameters: none of Triton's has a meaning here.

    `config` would replace the model's configuration, and `file:PATH` its files. Ignoring them would load something else
    than the client asked for.
    """
    for name in names:
        if name == "config":
            raise RequestError(
                "'config' can't override a model's configuration; it comes from the package, its `serving` block and "
                "--set MODEL.SETTING=VALUE. Load the model without it"
            )
        if name.startswith("file:"):
            raise RequestError(
                f"{reprlib.repr(name)} can't override files of a model; a package is read from the model repository. "
                "Put it there, and load the model without it"
            )
        raise RequestError(f"loading takes no parameter {reprlib.repr(name)}; load the model without it")
