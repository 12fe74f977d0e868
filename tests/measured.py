"""What a long check measures along the way."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Facts = dict[str, Any]


def kept_facts(path: Path) -> Iterator[Facts]:
    """Yield a dict for a fixture's users to fill; then print it and write it to `path` as JSON."""
    measured: Facts = {}
    yield measured
    path.write_text(json.dumps(measured, indent=2) + "\n")
    print("\n" + "\n".join(f"{what:<58} {value}" for what, value in measured.items()))
