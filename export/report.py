"""report.json and report.html: what was folded, what was verified, what was assumed."""

import json
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, Template

from export.fold import Fold
from export.precision import PrecisionShare
from export.verify import Skipped
from serve.model_package import Manifest


@dataclass(frozen=True, slots=True)
class Report:
    """Everything that an export found out."""

    manifest: Manifest
    parameters: int
    folds: tuple[Fold, ...]
    precision: dict[str, PrecisionShare]
    """By artifact path."""
    engine_note: str
    """Which engine was built, or why none was."""
    skipped: tuple[Skipped, ...]
    warnings: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """Plain values, as in report.json."""
        plain = asdict(self) | {"manifest": self.manifest.model_dump(mode="json")}
        return json.loads(json.dumps(plain))  # type: ignore[no-any-return]


def write_report(folder: Path, report: Report) -> None:
    """Write report.json and report.html into `folder`."""
    plain = report.as_dict()
    (folder / "report.json").write_text(json.dumps(plain, indent=2) + "\n", encoding="utf-8")
    (folder / "report.html").write_text(_template().render(plain), encoding="utf-8")


@cache
def _template() -> Template:
    environment = Environment(
        loader=PackageLoader("export", "."), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["mib"] = lambda size: f"{size / 2**20:.1f} MiB"
    environment.filters["figure"] = lambda value: f"{value:.3g}"
    environment.filters["percent"] = lambda value: f"{value:.2%}"
    return environment.get_template("report.html.j2")
