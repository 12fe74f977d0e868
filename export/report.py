"""report.json and report.html: what was folded, what was verified, what was assumed."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fuseline.export.folding.fold import Fold, KeptBatchNorm
from fuseline.export.fp16.layer_ranges import LayerRange
from fuseline.export.fp16.mixed_precision import KeptLayer
from fuseline.export.html_page import page_environment
from fuseline.export.verify import Skipped
from fuseline.serve.model_package import Manifest


@dataclass(frozen=True, slots=True)
class Report:
    """Everything that an export found."""

    manifest: Manifest
    parameters: int
    evidence: tuple[str, ...]
    """Why the network is taken to be what it is."""
    folds: tuple[Fold, ...]
    kept: tuple[KeptBatchNorm, ...]
    scale_folded: bool
    """Whether the first convolution carries the division of the pixels by 255 * std."""
    precision: dict[str, dict[str, Any]]
    """Artifact path to `PrecisionShare.as_json`."""
    fp16_kept_in_fp32: tuple[KeptLayer, ...]
    """Layers of the FP16 graph that are FP32, with the reasons."""
    fp16_ranges: tuple[LayerRange, ...]
    """Ranges of each layer's inputs, outputs and weights on the calibration images; empty without an FP16 graph."""
    fp16_deviation: float | None
    """Largest difference of a logit from FP32's on calibration images, as a share of the logits' range, with each FP16
    value stored in 16 bits as on a GPU; CPU runtimes leave most roundings out."""
    int8: dict[str, dict[str, Any]]
    """Artifact path to `Int8Graph.findings`: what was tried, and what it took to keep the bar."""
    engine_note: str
    """Which engine was built, or why none was."""
    skipped: tuple[Skipped, ...]
    tried: tuple[dict[str, Any], ...]
    """What was assumed, and each alternative that was tried on the images: `Findings.table`."""
    warnings: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, as in report.json."""
        plain = asdict(self) | {"manifest": self.manifest.model_dump(mode="json")}
        return json.loads(json.dumps(plain))  # type: ignore[no-any-return]


def write_report(folder: Path, report: Report) -> None:
    """Write report.json and report.html into `folder`."""
    plain = report.as_dict()
    (folder / "report.json").write_text(json.dumps(plain, indent=2) + "\n", encoding="utf-8")
    page = page_environment().get_template("report.html.j2").render(plain, layers_in_precision=_in_precision(plain))
    (folder / "report.html").write_text(page, encoding="utf-8", errors="backslashreplace")


def _in_precision(plain: dict[str, Any]) -> dict[str, dict[str, tuple[int, int]]]:
    """Return artifact path -> `layers` and `weights` -> (number in the artifact's own precision, number of all)."""
    found = {}
    for artifact in plain["manifest"]["artifacts"]:
        path, precision = artifact["path"], artifact["precision"]
        share = plain["int8"][path]["share"] if path in plain["int8"] else plain["precision"].get(path)
        if share is not None:
            found[path] = {
                what: (
                    share[what] - share[f"fp16_{what}"] if precision == "fp32" else share[f"{precision}_{what}"],
                    share[what],
                )
                for what in ("layers", "weights")
            }
    return found
