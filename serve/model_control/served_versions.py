"""What a control knows of the versions that are served, were refused, or went."""

from dataclasses import dataclass, field

from fuseline.serve.model import Model
from fuseline.serve.model_control.control import IndexEntry, ModelState
from fuseline.serve.model_control.model_folders import PackageOnDisk
from fuseline.serve.version_order import version_order


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a package is not served, and what it was like then."""

    package: PackageOnDisk
    reason: str
    pause_s: float
    """Seconds between that try and the next one that no change of the files asks for."""
    again_at: float
    """Time of that next try."""


@dataclass
class NamedVersions:
    """All that is known of one name."""

    name: str
    served: dict[str, Model] = field(default_factory=dict)
    """Models that take requests, by version."""
    refused: dict[str, Refusal] = field(default_factory=dict)
    """Packages that were refused, by version; a served model of that version is an older one."""
    loading: str | None = None
    """Version that is being loaded; None: none is."""
    retiring: list[Model] = field(default_factory=list)
    """Models that answer their last requests."""
    problem: str = ""
    """Reason why the repository has no package of this name; empty where it has one."""
    was_unloaded: bool = False
    """Whether a request or the repository took the model away."""
    measured_bytes: int | None = None
    """Memory that the last load took; None: nothing was loaded."""

    def index(self) -> list[IndexEntry]:
        """Return a line for each version, in their order."""
        lines = {}
        if self.problem:
            lines[""] = IndexEntry(self.name, "", ModelState.UNAVAILABLE, self.problem)
        for version, refusal in self.refused.items():
            lines[version] = IndexEntry(self.name, version, ModelState.UNAVAILABLE, refusal.reason)
        for model in self.retiring:
            lines[model.version] = IndexEntry(
                self.name, model.version, ModelState.UNLOADING, "it answers its last requests"
            )
        if self.loading is not None:
            lines[self.loading] = IndexEntry(self.name, self.loading, ModelState.LOADING, "")
        for version in self.served:
            reason = ""
            if version in self.refused:
                reason = f"what its folder has now was refused: {self.refused[version].reason}"
            elif version == self.loading:
                reason = "another package of this version is being loaded"
            lines[version] = IndexEntry(self.name, version, ModelState.READY, reason)
        if not lines:
            reason = "unloaded" if self.was_unloaded else ""
            lines[""] = IndexEntry(self.name, "", ModelState.UNAVAILABLE, reason)
        return sorted(lines.values(), key=lambda line: version_order(line.version))
