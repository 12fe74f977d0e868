import pytest

from fuseline.serve.errors import InputError
from fuseline.serve.settings import settings_from_flags

TOLD = {"50ms": 50.0, "0.05s": 50.0, " 12.5 ms ": 12.5, "50": 50.0, 50: 50.0}


@pytest.mark.parametrize(("text", "ms"), TOLD.items())
def test_a_latency_is_milliseconds_unless_it_says_otherwise(text: object, ms: float) -> None:
    assert settings_from_flags(latency_target=text).latency_target == ms


@pytest.mark.parametrize("text", ["fast", "50 m", "-5ms", "0", "1e3", "٥ms"])
def test_what_is_no_latency_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="--latency-target was given"):
        settings_from_flags(latency_target=text)
