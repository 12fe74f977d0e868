"""The settings of `fuseline serve`: one frozen, validated object."""

import os
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from fuseline.serve.addresses import checked_address, is_local, join_address
from fuseline.serve.backends.registry import BackendName
from fuseline.serve.batching.policy import MOST_LANES
from fuseline.serve.cpu import usable_cpus
from fuseline.serve.errors import InputError
from fuseline.serve.precision import PrecisionChoice
from fuseline.serve.server_log import LogFormat


class Settings(BaseModel):
    """Settings of one server. Each is a flag, and an environment variable with `FUSELINE_` before it."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    host: Annotated[str, Field(min_length=1)] = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8001
    """Port of gRPC; 0: any free one."""
    listen: Annotated[tuple[Annotated[str, AfterValidator(checked_address)], ...] | None, Field(min_length=1)] = None
    """Addresses of gRPC, each `host:port`, `unix:path` or `unix-abstract:name`; None: that of `host` and `port`."""
    http_port: Annotated[int, Field(ge=0, le=65535)] = 8002
    """Port of metrics and health over HTTP; 0: no HTTP."""
    backend: Literal["auto", BackendName] = "auto"
    precision: PrecisionChoice = "auto"
    max_batch: Annotated[int | None, Field(ge=1, le=4096)] = None
    """Number of rows (images) of the largest batch; None: 32, on a CPU the part of that which it gains from (see
    `fuseline.serve.batching.policy`)."""
    max_queue_rows: Annotated[int, Field(ge=1)] = 1024
    """Largest number of waiting rows (images) of one model; more are refused."""
    max_queue_ms: Annotated[float, Field(gt=0, le=3_600_000)] = 2000.0
    """Longest predicted wait of a request without a deadline; one that would wait longer is refused."""
    max_delay_ms: Annotated[float, Field(ge=0, le=10_000)] = 0.0
    """Longest time that an idle backend waits for a fuller batch; 0: it doesn't wait."""
    max_message_mb: Annotated[int, Field(ge=1, le=2047)] = 64
    """Largest request in MiB: a gRPC message, or a body over HTTP, also after its decompression."""
    max_images_per_request: Annotated[int, Field(ge=1)] = 128
    decode_threads: Annotated[int, Field(ge=1, le=256)] = Field(default_factory=usable_cpus)
    fast_decode: bool = False
    """Whether large JPEGs are decoded at a fraction of their size: faster, and not to the pixel as torchvision does."""
    threads: Annotated[int, Field(ge=0, le=1024)] = 0
    """Number of the backend's CPU threads, of all its lanes together; 0: the runtime decides."""
    lanes: Annotated[int | None, Field(ge=1, le=MOST_LANES)] = None
    """Number of batches that are computed side by side; None: measured at start-up on a CPU, 2 on a GPU."""
    workers: Annotated[int, Field(ge=1, le=64)] = 1
    """Number of processes that take requests, beside one that computes; 1: one process does both."""
    shared_memory: Literal["auto", "on", "off"] = "auto"
    """Whether clients may pass tensors by shared memory; auto: if only this machine can reach the server."""
    drain_timeout_s: Annotated[float, Field(gt=0)] = 30.0
    """Longest time that a drain waits for answers under way."""
    log_format: LogFormat = "text"
    """Form of the log's lines: for people, or a JSON object each."""
    triton_metrics: bool = False
    """Whether /metrics has Triton's metrics too, under its names."""
    engine_cache: Path | None = None
    """Folder for the TensorRT engines that are built here because none in a package fits; None: one in the user's cache
    folder."""

    @model_validator(mode="after")
    def _request_fits_queue(self) -> Self:
        if self.max_images_per_request > self.max_queue_rows:
            raise ValueError(
                f"max_images_per_request ({self.max_images_per_request}) is above max_queue_rows "
                f"({self.max_queue_rows}), so such a request could never be admitted"
            )
        return self

    @property
    def grpc_addresses(self) -> tuple[str, ...]:
        """Addresses that gRPC listens on; port 0 stands for any free one."""
        return self.listen or (join_address(self.host, self.port),)

    @property
    def why_no_shared_memory(self) -> str | None:
        """Reason, for clients, why no memory is shared with them; None: it is, if the machine has such memory.

        A region is the memory of a process on this machine, so it is of use only to a client on this machine. To
        another one it would be a way to have this machine's memory read and written. So `auto` is on where every
        address that the server listens on is local.
        """
        if self.shared_memory == "off":
            return "the server shares no memory: it was started with --shared-memory off; start it with on, or auto"
        addresses = (*self.grpc_addresses, *((join_address(self.host, self.http_port),) if self.http_port else ()))
        reachable = next((address for address in addresses if not is_local(address)), None)
        if self.shared_memory == "auto" and reachable is not None:
            return (
                f"the server shares no memory because other machines may reach it on {reachable}; start it with "
                "--shared-memory on, or let it listen on loopback addresses and Unix sockets only"
            )
        return None

    @property
    def engine_cache_folder(self) -> Path:
        """`engine_cache`, or its default: `fuseline/engines` in the user's cache folder.

        The user's cache folder is XDG_CACHE_HOME if that is absolute, else ~/.cache (XDG Base Directory Specification).
        """
        if self.engine_cache is not None:
            return self.engine_cache
        named = Path(os.environ.get("XDG_CACHE_HOME", ""))
        # A user without a home, as containers have, most likely can't write to / either, which is no error.
        home = Path(os.environ.get("HOME") or "/")
        return (named if named.is_absolute() else home / ".cache") / "fuseline/engines"

    @property
    def max_message_bytes(self) -> int:
        """`max_message_mb` in bytes."""
        return self.max_message_mb * 2**20


def settings_from_flags(**flags: Any) -> Settings:
    """Build the settings from flags by their field names; those that are None keep their default.

    Raises:
        InputError: values break rules; the message names each flag, its value and the rule.
    """
    try:
        return Settings(**{name: value for name, value in flags.items() if value is not None})
    except ValidationError as error:
        broken = error.errors()
        # pydantic counts only the sound elements of a sequence, and complains of their number too.
        of_elements = {e["loc"][0] for e in broken if len(e["loc"]) > 1}
        broken = [e for e in broken if e["type"] != "too_short" or e["loc"][0] not in of_elements]
        raise InputError("; ".join(_rule_broken(e["loc"], e["msg"], e["input"]) for e in broken)) from error


def _rule_broken(location: tuple[int | str, ...], rule: str, value: object) -> str:
    rule = rule.removeprefix("Value error, ")
    if not location:
        return rule
    flag = str(location[0]).replace("_", "-")
    return f"--{flag} was given {value!r}: {rule[:1].lower()}{rule[1:]}"
