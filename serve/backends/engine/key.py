"""What an engine is bound to, and the key that says so in a file's name."""

from typing import Annotated, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field

Library = Literal["tensorrt", "tensorrt_rtx"]
LIBRARIES: tuple[Library, ...] = get_args(Library)


class EngineDetails(BaseModel):
    """What an engine is bound to: the `details` of its artifact in the manifest."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    library: Library
    library_version: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9.+_-]*$")]
    compute_capability: Annotated[str, Field(pattern=r"^sm\d+$")]
    profile: tuple[int, int, int]
    """Smallest, optimal and largest batch in rows."""

    graph_sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    """Sha256 of the package's ONNX file."""

    @property
    def key(self) -> str:
        """Stem of the engine's file: the same only for equal graphs, library builds, capabilities and profiles."""
        profile = ".".join(map(str, self.profile))
        return f"{self.library}-{self.library_version}-{self.compute_capability}-b{profile}-{self.graph_sha256[:16]}"

    @property
    def timing_key(self) -> str:
        """Stem of the timing cache's file: a measurement holds for one library build and one kind of GPU."""
        return f"timing-{self.library}-{self.library_version}-{self.compute_capability}"
