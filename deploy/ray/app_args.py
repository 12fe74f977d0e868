"""The arguments of the application: what model, on what part of a machine, in how many replicas."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from fuseline.deploy.ray.capacity import capacity_of
from fuseline.serve.errors import InputError
from fuseline.serve.settings import Settings, settings_from_flags

_SETTINGS = (
    "backend",
    "precision",
    "max_batch",
    "max_queue_rows",
    "max_queue_ms",
    "max_delay_ms",
    "latency_target",
    "lanes",
    "threads",
    "decode_threads",
    "fast_decode",
    "max_message_mb",
    "max_images_per_request",
    "max_image_pixels",
    "decode_timeout_s",
    "max_requests_per_client",
    "max_streams",
    "backend_timeout_s",
    "drain_timeout_s",
    "token_hashes",
    "engine_cache",
)
"""Arguments that are settings of `fuseline serve`, by their names there."""

_DRAIN_MARGIN_S = 10.0
"""Seconds beyond the drain for which Ray waits before it ends a replica's process."""


class AppArgs(BaseModel):
    """Arguments of `fuseline.deploy.ray:app`. Those that `fuseline serve` has too mean what they mean there."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    package: Path
    """Folder of the model package, at the same path on every node that may run a replica."""
    name: str = ""
    """Name under which requests find the model; empty: the one in the package's manifest."""
    backend: str | None = None
    precision: str | None = None
    max_batch: int | None = None
    max_queue_rows: int | None = None
    max_queue_ms: float | None = None
    max_delay_ms: float | None = None
    latency_target: str | float | None = None
    lanes: int | None = None
    threads: int | None = None
    """CPU threads of the backend; None: `num_cpus` rounded down, at least one."""
    decode_threads: int | None = None
    """Threads that decode pictures; None: `num_cpus` rounded down, at least one."""
    fast_decode: bool | None = None
    max_message_mb: int | None = None
    max_images_per_request: int | None = None
    max_image_pixels: int | None = None
    decode_timeout_s: float | None = None
    max_requests_per_client: int | None = None
    max_streams: int | None = None
    backend_timeout_s: float | None = None
    drain_timeout_s: float | None = None
    token_hashes: Path | None = None
    engine_cache: Path | None = None

    num_cpus: Annotated[float, Field(ge=0, le=4096)] = 1.0
    """CPUs that Ray reserves for a replica."""
    num_gpus: Annotated[float, Field(ge=0, le=64)] = 0.0
    """GPUs that Ray reserves for a replica; a fraction: replicas share one."""
    memory: Annotated[int | None, Field(ge=1)] = None
    """Bytes of memory that Ray reserves for a replica; None: it reserves none."""
    accelerator_type: str | None = None
    """Kind of GPU that a replica needs, by Ray's name; None: any."""

    min_replicas: Annotated[int, Field(ge=1, le=100_000)] = 1
    max_replicas: Annotated[int | None, Field(ge=1, le=100_000)] = None
    """Most replicas; None: `min_replicas`, which makes their number fixed."""
    target_wait_ms: Annotated[float, Field(gt=0, le=3_600_000)] = 50.0
    """Wait of rows above which replicas are added."""
    target_busy: Annotated[float, Field(gt=0, le=1)] = 0.7
    """Share of the time in which a replica's lanes compute that the number of replicas is chosen for."""
    upscale_delay_s: Annotated[float, Field(ge=0, le=86_400)] = 5.0
    """Seconds for which more replicas must be wanted before they are added."""
    downscale_delay_s: Annotated[float, Field(ge=0, le=86_400)] = 300.0
    """Seconds for which fewer must suffice before they are taken away."""
    look_back_period_s: Annotated[float, Field(gt=0, le=3600)] = 10.0
    """Seconds over which what replicas report is averaged."""
    metrics_interval_s: Annotated[float, Field(gt=0, le=3600)] = 2.0
    """Seconds between two reports of a replica."""

    max_ongoing_requests: Annotated[int | None, Field(ge=1, le=1_000_000)] = None
    """Requests that a proxy gives a replica at a time; None: what its batches and decoding threads can use."""
    max_queued_requests: Annotated[int, Field(ge=1, le=10_000_000)] = 1024
    """Requests that wait in each proxy; further ones are refused."""
    max_surge_percent: Annotated[int, Field(ge=0, le=100)] = 25
    """Replicas that an update starts before it stops others, in percent, rounded up; 0: it stops them first, which
    needs no spare machine."""
    health_check_period_s: Annotated[float, Field(gt=0, le=3600)] = 5.0
    health_check_timeout_s: Annotated[float, Field(gt=0, le=3600)] = 10.0

    @model_validator(mode="wrap")
    @classmethod
    def _told_in_one_line(cls, value: Any, validate: Callable[[Any], Self]) -> Self:
        """Raise `InputError` with one line, instead of the several of pydantic's own error."""
        try:
            args = validate(value)
        except ValidationError as error:
            raise InputError("; ".join(_rule_broken(cls, broken) for broken in error.errors())) from None
        if args.max_replicas is not None and args.max_replicas < args.min_replicas:
            raise InputError(
                f"max_replicas was given {args.max_replicas}: expected at least min_replicas, which is "
                f"{args.min_replicas}"
            )
        if args.num_gpus > 1 and args.num_gpus != int(args.num_gpus):
            raise InputError(
                f"num_gpus was given {args.num_gpus:g}: a replica gets a part of one GPU or whole ones; give 0.25, 1, 2"
            )
        args.settings()
        return args

    def settings(self) -> Settings:
        """Return the settings of a replica.

        Raises `InputError`: one breaks a rule.
        """
        given = {name: getattr(self, name) for name in _SETTINGS}
        threads = max(1, int(self.num_cpus))
        # A node has many replicas, and what each would find on it is not its own.
        given["threads"] = threads if self.threads is None else self.threads
        given["decode_threads"] = threads if self.decode_threads is None else self.decode_threads
        return settings_from_flags(
            **given,
            # Clients are on other machines, and the page would show one replica of many.
            shared_memory="off",
            console=False,
            http_port=0,
        )

    @property
    def ongoing_requests(self) -> int:
        """`max_ongoing_requests`, or what a replica can use."""
        if self.max_ongoing_requests is not None:
            return self.max_ongoing_requests
        return capacity_of(self.settings(), has_gpu=self.num_gpus > 0).requests

    @property
    def shutdown_timeout_s(self) -> float:
        """Seconds for which Ray lets a replica finish what it has."""
        return self.settings().drain_timeout_s + _DRAIN_MARGIN_S


def _rule_broken(args: type[AppArgs], broken: Any) -> str:
    location, rule = broken["loc"], broken["msg"].removeprefix("Value error, ")
    name = ".".join(map(str, location)) or "the arguments"
    if broken["type"] == "extra_forbidden":
        return f"{name} is no argument of this application; there are {', '.join(args.model_fields)}"
    if broken["type"] == "missing":
        return f"{name} is missing: give {name}=/models/resnet18, a folder that fuseline export has written"
    return f"{name} was given {broken['input']!r}: {rule[:1].lower()}{rule[1:]}"
