"""A latency as people write it: `50ms`, `0.05s`, or a plain number of milliseconds."""

import re
import reprlib

_LATENCY = re.compile(r"(\d+(?:\.\d*)?|\.\d+)\s*(ms|s|)", re.ASCII)


def latency_ms(value: object) -> object:
    """Return the milliseconds that a text such as `50ms` stands for; what is no text is returned as it is.

    Raises:
        ValueError: the text has another form.
    """
    if not isinstance(value, str):
        return value
    if (found := _LATENCY.fullmatch(value.strip())) is None:
        raise ValueError(f"{reprlib.repr(value)} is no latency; expected such as 50ms, 0.05s or 50")
    return float(found[1]) * (1000 if found[2] == "s" else 1)
