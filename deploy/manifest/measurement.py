"""What was measured of one package on one machine, as a file keeps it."""

from datetime import datetime
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from fuseline.serve.broken_rules import broken_rules
from fuseline.serve.errors import InputError
from fuseline.serve.model_package import Name

MAX_BYTES = 2**20

Line = Annotated[str, Field(max_length=200, pattern=r"^[^\x00-\x1f\x7f\x85\u2028\u2029]*$")]
"""Text that a comment can have: one line."""
Positive = Annotated[float, Field(gt=0, le=1e9)]
Bytes = Annotated[int, Field(gt=0, le=2**50)]


class Measurement(BaseModel):
    """Memory and times of one server of one package under a bounded load."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    format_version: Literal[1] = 1
    package: Name
    version: Name
    manifest_sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    """SHA-256 of the package's manifest.json, which names the bytes of all of its files."""
    fuseline: Line
    """Version of Fuseline."""
    measured_at: AwareDatetime
    cpu: Line
    """The CPU, as it calls itself."""
    cpus: Annotated[int, Field(ge=1, le=4096)]
    """Logical CPUs that the server had."""
    backend: Line
    device: Line
    precision: Line
    start_s: Positive
    """Seconds from the start of the process until it was ready."""
    ready_bytes: Bytes
    """Largest resident memory until then."""
    peak_bytes: Bytes
    """Largest resident memory under the load, and the burst of pictures after it."""
    row_bytes: Bytes
    """Bytes of one image as it waits in the queue."""
    max_queue_rows: Annotated[int, Field(ge=1, le=2**31)]
    burst_images: Annotated[int, Field(ge=1)]
    """Encoded pictures that came at once after the load."""
    picture_bytes: Bytes
    """Bytes of each."""
    load_s: Positive
    """Seconds of load."""
    images: Annotated[int, Field(ge=1)]
    """Images that were answered in that time."""
    refused: Annotated[int, Field(ge=0)]
    """Requests that were refused as overload."""
    batches: Annotated[int, Field(ge=1)]
    batch_ms: Positive
    """Mean time of the backend's call for one batch."""
    batch_rows: Positive
    """Mean number of images of a batch."""

    @property
    def images_per_s(self) -> float:
        """Images a second under that load."""
        return self.images / self.load_s

    @property
    def on_cpu(self) -> bool:
        """Whether the network was computed on CPUs."""
        return self.device == "CPU"

    @property
    def lines(self) -> list[str]:
        """Lines for people: what was measured, where and when."""
        when: datetime = self.measured_at
        mib = 2**20
        return [
            f"Measured with {self.package} (version {self.version}) by Fuseline {self.fuseline} on",
            f"{when:%Y-%m-%d %H:%M %Z}, {self.cpus} CPUs of {self.cpu}, {self.precision} by {self.backend} on "
            f"{self.device}:",
            f"ready after {self.start_s:.1f} s; {self.ready_bytes / mib:.0f} MiB resident then, "
            f"{self.peak_bytes / mib:.0f} MiB under load and",
            f"a burst of {self.burst_images} pictures of {self.picture_bytes / 1000:.0f} KB;",
            f"{self.images_per_s:.0f} images/s in {self.load_s:.0f} s, batches of {self.batch_rows:.1f} in "
            f"{self.batch_ms:.1f} ms, beside the load's own client.",
            "Another CPU or GPU than this one takes other times: measure on a node of the cluster, and use that by",
            "--measured FILE.",
        ]


def measurement_from_bytes(data: bytes, where: str) -> Measurement:
    """Return what a file holds. Raises `InputError`, which names `where`, if it is no measurement."""
    if len(data) > MAX_BYTES:
        raise InputError(f"{where} has more than {MAX_BYTES} bytes, which no measurement has")
    try:
        return Measurement.model_validate_json(data)
    except ValidationError as error:
        raise InputError(
            f"{where} is no measurement of `fuseline manifest`: {broken_rules(error)}; measure anew without it"
        ) from error


def read_measurement(path: Path) -> Measurement:
    """Return what `path` holds. Raises `InputError` if it can't be read or is no measurement."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise InputError(f"{path} can't be read: {error.strerror}") from error
    return measurement_from_bytes(data, str(path))
