"""The words with which wrong input is refused."""

from collections.abc import Callable

import pytest

from fuseline.serve.errors import FuselineError


def refusal_of(error: type[FuselineError], call: Callable[..., object], *args: object, **options: object) -> str:
    """Return the message of the `error` that `call(*args, **options)` raises; its exit code must say wrong input."""
    with pytest.raises(error) as caught:
        call(*args, **options)
    assert caught.value.exit_code == 2
    return str(caught.value)
