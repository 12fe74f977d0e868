"""Which rules data from elsewhere breaks, in one line for people."""

from pydantic import ValidationError

_MOST_TEXT = 300


def broken_rules(error: ValidationError, *, whole: str = "the file", most: int = 3) -> str:
    """Return where which rules are broken; of more than `most`, or of a long one, a part.

    `whole` is what the data is called where a rule is about all of it.
    """
    faults = error.errors(include_input=False, include_url=False)
    rules = list(dict.fromkeys(f"{'.'.join(map(str, fault['loc'])) or whole}: {fault['msg']}" for fault in faults))
    more = [f"and {len(rules) - most} more"] if len(rules) > most else []
    return "; ".join([*(_short_line(rule) for rule in rules[:most]), *more])


def _short_line(text: str) -> str:
    line = "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)
    return line if len(line) <= _MOST_TEXT else f"{line[:_MOST_TEXT]}…"
