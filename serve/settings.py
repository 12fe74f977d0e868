"""The settings of `fuseline serve`: one frozen, validated object."""

import os
import reprlib
import resource
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from fuseline.serve.backends.registry import BackendName
from fuseline.serve.batching.policy import MOST_LANES
from fuseline.serve.errors import InputError
from fuseline.serve.latency_target import latency_ms
from fuseline.serve.listening.addresses import checked_address, is_local, join_address
from fuseline.serve.model_package import MAX_PIXELS, NAME_PATTERN
from fuseline.serve.precision import PrecisionChoice
from fuseline.serve.process.cpu import usable_cpus
from fuseline.serve.process.server_log import LogFormat
from fuseline.serve.route_flags import (
    Alias,
    Shadow,
    alias_from_flag,
    check_aliases,
    check_shadows,
    checked_alias,
    checked_shadow,
    shadow_from_flag,
)
from fuseline.serve.tls.certificate import CertificateFiles
from fuseline.serve.version_policy import policy_from_text

PER_MODEL = (
    "backend",
    "precision",
    "max_batch",
    "max_queue_rows",
    "max_queue_ms",
    "max_delay_ms",
    "latency_target",
    "threads",
    "lanes",
)
"""Settings that may differ from model to model."""

EVERY_MODEL = "*"

_MOST_RULES = 10
"""Most rules that one message names."""

_VALUES = reprlib.Repr()
"""How a value is told: the usual ones whole."""
_VALUES.maxstring = _VALUES.maxother = 150


def model_setting_from_text(text: str) -> tuple[str, str, str]:
    """Return model, setting and value of `MODEL.SETTING=VALUE`; a model's name may have dots.

    Raises:
        ValueError: `text` has another form, or the setting is none of `PER_MODEL`.
    """
    name, is_there, value = text.partition("=")
    model, _, setting = name.rpartition(".")
    if not is_there or not model:
        raise ValueError("expected MODEL.SETTING=VALUE, such as resnet18.max_batch=64")
    if setting not in PER_MODEL:
        raise ValueError(f"{reprlib.repr(setting)} is no setting of a model; there are {', '.join(PER_MODEL)}")
    return model, setting, value


def _checked_policy(text: str) -> str:
    policy_from_text(text)
    return text


def _checked_model_setting(text: str) -> str:
    model_setting_from_text(text)
    return text


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
    console: bool | None = None
    """Whether the HTTP port has the page that shows the server at work; None: where only this machine can reach it."""
    tls_cert: Path | None = None
    """File with the server's certificate, and the intermediate ones after it, in PEM; None: TCP ports are plain."""
    tls_key: Path | None = None
    """File with the private key of `tls_cert`, in PEM."""
    tls_client_ca: Path | None = None
    """File with certificates of which a client must show one that they signed; None: clients show none."""
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
    latency_target: Annotated[Annotated[float, Field(gt=0, le=3_600_000)] | None, BeforeValidator(latency_ms)] = None
    """Milliseconds of queueing and computing within which 99 % of the requests are to stay, by batches and delays that
    are steered; None: nothing is."""
    max_message_mb: Annotated[int, Field(ge=1, le=2047)] = 64
    """Largest request in MiB: a gRPC message, or a body over HTTP, also after its decompression."""
    max_images_per_request: Annotated[int, Field(ge=1)] = 128
    max_image_pixels: Annotated[int, Field(ge=1)] = MAX_PIXELS
    """Largest number of pixels of a picture, before and after it is resized."""
    decode_timeout_s: Annotated[float, Field(gt=0, le=3600)] = 10.0
    """Longest time that one picture's decoding may take."""
    max_requests_per_client: Annotated[int, Field(ge=1)] = 1024
    """Most requests of one client under way in one process."""
    max_streams: Annotated[int, Field(ge=1)] = 1024
    """Most streams of all clients open in one process."""
    max_calls_per_connection: Annotated[int, Field(ge=1, le=2**31 - 1)] = 16_384
    """Most calls open on one connection of gRPC; further ones wait on the client's side. Until a call is taken up gRPC
    holds at most 64 KiB of it, the window of a new HTTP/2 stream (RFC 9113, 6.9.2)."""
    max_connections: Annotated[int | None, Field(ge=1, le=1_000_000)] = None
    """Most connections of one process, over gRPC on each address, and over HTTP; None: half of the files that the
    process may open, over HTTP at most 1,024."""
    max_header_kb: Annotated[int, Field(ge=4, le=1024)] = 32
    """Largest head of an HTTP request, and largest metadata of a gRPC call, in KiB."""
    keepalive_s: Annotated[float, Field(ge=0, le=86_400)] = 60.0
    """Seconds without a word from a client of gRPC after which it is asked whether it lives; 0: it is not asked."""
    keepalive_timeout_s: Annotated[float, Field(gt=0, le=3600)] = 20.0
    """Seconds that it may take to answer that before its connection is closed."""
    max_connection_age_s: Annotated[float, Field(ge=0, le=31_536_000)] = 0.0
    """Seconds after which a connection takes no new request, so that its client connects anew; 0: never."""
    max_connection_age_grace_s: Annotated[float, Field(gt=0, le=86_400)] = 300.0
    """Seconds that calls under way on such a connection have to end; streams that are still open are cut then."""
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
    alias: tuple[Annotated[str, AfterValidator(checked_alias)], ...] | None = None
    """Names that lead to models, each as `fuseline.serve.route_flags` says."""
    shadow: tuple[Annotated[str, AfterValidator(checked_shadow)], ...] | None = None
    """Models that compute a share of requests a second time, each as `fuseline.serve.route_flags` says."""
    token_hashes: Path | None = None
    """File with the hashes of the tokens by which calls are let in; None: every call is."""
    backend_timeout_s: Annotated[float, Field(ge=0, le=3600)] = 10.0
    """Seconds after which a call of the backend counts as one that never ends, unless batches of its size take long as
    measured; 0: none ever does."""
    drain_timeout_s: Annotated[float, Field(gt=0)] = 30.0
    """Longest time that a drain waits for answers under way."""
    log_format: LogFormat = "text"
    """Form of the log's lines: for people, or a JSON object each."""
    triton_metrics: bool = False
    """Whether /metrics has Triton's metrics too, under its names."""
    engine_cache: Path | None = None
    """Folder for the TensorRT engines that are built here because none in a package fits; None: one in the user's cache
    folder."""
    name: Annotated[str | None, Field(pattern=NAME_PATTERN)] = None
    """Name of the one package that is served, in place of its own; None: each package has its own."""
    model_repository: tuple[Path, ...] = ()
    """Folders of models, each a package or a folder of versions: see `fuseline.serve.model_control.model_folders`."""
    model_control_mode: Literal["none", "poll", "explicit"] = "none"
    """How the models of `model_repository` change while the server runs: not at all, when their folders do, or by
    request."""
    repository_poll_secs: Annotated[float, Field(gt=0, le=86_400)] = 15.0
    """Seconds between two looks at the repository in the mode poll."""
    load_model: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    """Models that the mode explicit starts with; `*`: all."""
    version_policy: tuple[Annotated[str, AfterValidator(_checked_policy)], ...] = ()
    """Versions of the repository's models that are served, each `[MODEL=]POLICY`: see
    `fuseline.serve.version_policy`."""
    set: tuple[Annotated[str, AfterValidator(_checked_model_setting)], ...] = ()
    """Settings of single models, each `MODEL.SETTING=VALUE`."""

    @model_validator(mode="after")
    def _controls_a_repository(self) -> Self:
        if self.model_control_mode != "none" and not self.model_repository:
            raise ValueError(f"--model-control-mode {self.model_control_mode} needs a --model-repository")
        if self.load_model and self.model_control_mode != "explicit":
            raise ValueError("--load-model is for --model-control-mode explicit; other modes load every model")
        if EVERY_MODEL in self.load_model and len(self.load_model) > 1:
            raise ValueError(f"--load-model {EVERY_MODEL} names every model, so no other may be given")
        return self

    @model_validator(mode="after")
    def _request_fits_queue(self) -> Self:
        if self.max_images_per_request > self.max_queue_rows:
            raise ValueError(
                f"max_images_per_request ({self.max_images_per_request}) is above max_queue_rows "
                f"({self.max_queue_rows}), so such a request could never be admitted"
            )
        return self

    @model_validator(mode="after")
    def _routes_end_at_models(self) -> Self:
        check_aliases(self.aliases)
        check_shadows(self.shadows, self.aliases)
        return self

    @property
    def aliases(self) -> list[Alias]:
        """What `alias` says."""
        return [alias_from_flag(text) for text in self.alias or ()]

    @property
    def shadows(self) -> list[Shadow]:
        """What `shadow` says."""
        return [shadow_from_flag(text) for text in self.shadow or ()]

    @model_validator(mode="after")
    def _tls_is_whole(self) -> Self:
        if (self.tls_cert is None) != (self.tls_key is None):
            given, missing = ("cert", "key") if self.tls_key is None else ("key", "cert")
            raise ValueError(f"--tls-{given} was given without --tls-{missing}; TLS needs both")
        if self.tls_client_ca is not None and self.tls_cert is None:
            raise ValueError("--tls-client-ca was given without --tls-cert and --tls-key; it needs both")
        return self

    @property
    def certificate_files(self) -> CertificateFiles | None:
        """Files of TLS; None: TCP ports are plain."""
        if self.tls_cert is None or self.tls_key is None:
            return None
        return CertificateFiles(self.tls_cert, self.tls_key, self.tls_client_ca)

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
    def http_is_local(self) -> bool:
        """Whether only this machine can reach the HTTP port."""
        return is_local(join_address(self.host, self.http_port))

    @property
    def has_console(self) -> bool:
        """`console`, or its default."""
        return bool(self.http_port) and (self.http_is_local if self.console is None else self.console)

    @property
    def most_connections(self) -> int:
        """`max_connections`, or its default over gRPC."""
        if self.max_connections is not None:
            return self.max_connections
        files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        return 2**31 - 1 if files == resource.RLIM_INFINITY else max(1, files // 2)

    @property
    def unguarded_addresses(self) -> tuple[str, ...]:
        """Addresses that other machines may reach, on which nobody needs to say who they are; empty: there are none."""
        if self.token_hashes is not None or self.tls_client_ca is not None:
            return ()
        http = (join_address(self.host, self.http_port),) if self.http_port else ()
        return tuple(address for address in (*self.grpc_addresses, *http) if not is_local(address))

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
        InputError: values break rules; the message names each flag, its value and the rule, of many the first ones.
    """
    try:
        return Settings(**{name: value for name, value in flags.items() if value is not None})
    except ValidationError as error:
        broken = error.errors()
        # pydantic counts only the sound elements of a sequence, and complains of their number too.
        of_elements = {e["loc"][0] for e in broken if len(e["loc"]) > 1}
        broken = [e for e in broken if e["type"] != "too_short" or e["loc"][0] not in of_elements]
        # A text that is given many times breaks its rule as often.
        rules = list(dict.fromkeys(_rule_broken(e["loc"], e["msg"], e["input"]) for e in broken))
        more = [f"and {len(rules) - _MOST_RULES} more"] if len(rules) > _MOST_RULES else []
        raise InputError("; ".join([*rules[:_MOST_RULES], *more])) from error


def _rule_broken(location: tuple[int | str, ...], rule: str, value: object) -> str:
    rule = rule.removeprefix("Value error, ")
    if not location:
        return rule
    flag = str(location[0]).replace("_", "-")
    return f"--{flag} was given {_VALUES.repr(value)}: {rule[:1].lower()}{rule[1:]}"
