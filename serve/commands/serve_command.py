"""`fuseline serve PACKAGE…` and `fuseline classify IMAGE…`."""

import atexit
import logging
import os
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fuseline.serve.backends.registry import BACKENDS
from fuseline.serve.command_line import forget_service_links, forgotten_links, run_command_line
from fuseline.serve.commands.client_flags import (
    Tls,
    TlsCa,
    TlsCert,
    TlsKey,
    TlsServerName,
    TokenFile,
    TokenInClear,
    connection_from_flags,
)
from fuseline.serve.errors import InputError
from fuseline.serve.listening.addresses import host_to_call, join_address
from fuseline.serve.model_settings import check_model_settings
from fuseline.serve.precision import CHOICES, listed
from fuseline.serve.process.log_writer import write_whole, writer_of
from fuseline.serve.process.memory_guard import MemoryGuard, memory_limit_bytes
from fuseline.serve.process.open_files import raise_open_files_limit
from fuseline.serve.process.server_log import line_record, server_log, start_log
from fuseline.serve.settings import Settings, settings_from_flags

if TYPE_CHECKING:
    from fuseline.serve.server import Server
    from fuseline.serve.workers.supervisor import Supervisor

_STARTED = time.monotonic()

_LAST_S = 1.0
"""Longest time in seconds for which the end of the process waits for whoever reads stdout."""

_log = logging.getLogger(__name__)


def _option(field: str, help: str) -> Any:
    return typer.Option(envvar=f"FUSELINE_{field.upper()}", help=help)


def _default(field: str) -> Any:
    return Settings.model_fields[field].default


def serve(
    context: typer.Context,
    packages: Annotated[
        list[Path] | None,
        typer.Argument(metavar="PACKAGE", help="Model packages that `fuseline export` wrote, or folders of them."),
    ] = None,
    *,
    host: Annotated[str, _option("host", "Address to listen on; 0.0.0.0: every one.")] = _default("host"),
    port: Annotated[int, _option("port", "gRPC; 0: any free one.")] = _default("port"),
    listen: Annotated[
        list[str] | None,
        _option(
            "listen",
            "Address of gRPC: unix:PATH, unix-abstract:NAME or HOST:PORT; may be given several times. --port counts "
            "beside it only if it is given too.",
        ),
    ] = None,
    http_port: Annotated[
        int, _option("http_port", "REST, /metrics, /healthz, /livez, /readyz; 0: no HTTP.")
    ] = _default("http_port"),
    console: Annotated[
        bool | None,
        typer.Option(
            "--console/--no-console",
            envvar="FUSELINE_CONSOLE",
            help="The page at / of the HTTP port, which shows the server at work; default: where only this machine can "
            "reach it.",
        ),
    ] = None,
    tls_cert: Annotated[
        Path | None,
        _option(
            "tls_cert", "Certificate of gRPC's and HTTP's ports in PEM; with --tls-key. It may be replaced while used."
        ),
    ] = None,
    tls_key: Annotated[Path | None, _option("tls_key", "Private key of --tls-cert, in PEM.")] = None,
    tls_client_ca: Annotated[
        Path | None,
        _option("tls_client_ca", "Certificates in PEM; a client must show one that they signed (mutual TLS)."),
    ] = None,
    backend: Annotated[str, _option("backend", f"{listed(('auto', *BACKENDS))}.")] = _default("backend"),
    precision: Annotated[
        str,
        _option(
            "precision",
            f"{listed(CHOICES)}; auto: for packages exported with --fp16, FP16 on a GPU and BF16 on a CPU that has it, "
            "else FP32.",
        ),
    ] = _default("precision"),
    max_batch: Annotated[
        int | None, _option("max_batch", "Largest batch, in images; default: 32, less for large images on a CPU.")
    ] = _default("max_batch"),
    max_queue_rows: Annotated[int, _option("max_queue_rows", "Images that may wait; more are refused.")] = _default(
        "max_queue_rows"
    ),
    max_queue_ms: Annotated[
        float,
        _option("max_queue_ms", "How long a request without a deadline may wait; one that would longer is refused."),
    ] = _default("max_queue_ms"),
    max_delay_ms: Annotated[
        float, _option("max_delay_ms", "How long an idle backend waits for a fuller batch.")
    ] = _default("max_delay_ms"),
    latency_target: Annotated[
        str | None,
        _option(
            "latency_target",
            "Latency of queue and compute, such as 50ms, below which batches and delays are steered to keep 99 % of "
            "the requests.",
        ),
    ] = None,
    max_message_mb: Annotated[int, _option("max_message_mb", "Largest request, in MiB.")] = _default("max_message_mb"),
    max_images_per_request: Annotated[int, _option("max_images_per_request", "Images of one request.")] = _default(
        "max_images_per_request"
    ),
    max_image_pixels: Annotated[
        int, _option("max_image_pixels", "Pixels of one picture; larger ones are refused by their header.")
    ] = _default("max_image_pixels"),
    decode_timeout_s: Annotated[
        float, _option("decode_timeout_s", "How long one picture may take to decode.")
    ] = _default("decode_timeout_s"),
    max_requests_per_client: Annotated[
        int, _option("max_requests_per_client", "Requests of one client under way in a process; more are refused.")
    ] = _default("max_requests_per_client"),
    max_streams: Annotated[int, _option("max_streams", "Streams open in a process; more are refused.")] = _default(
        "max_streams"
    ),
    max_calls_per_connection: Annotated[
        int, _option("max_calls_per_connection", "Calls open on one gRPC connection; more wait on the client's side.")
    ] = _default("max_calls_per_connection"),
    max_connections: Annotated[
        int | None,
        _option(
            "max_connections",
            "Connections of a process, gRPC's on each address and HTTP's; default: half of its file descriptors, over "
            "HTTP at most 1024.",
        ),
    ] = _default("max_connections"),
    max_header_kb: Annotated[
        int, _option("max_header_kb", "Largest metadata of a call or head of an HTTP request, in KiB.")
    ] = _default("max_header_kb"),
    keepalive_s: Annotated[
        float,
        _option("keepalive_s", "Silence of a gRPC client after which it is asked whether it lives; 0: it is not."),
    ] = _default("keepalive_s"),
    keepalive_timeout_s: Annotated[
        float, _option("keepalive_timeout_s", "How long it may take to answer that.")
    ] = _default("keepalive_timeout_s"),
    max_connection_age_s: Annotated[
        float,
        _option(
            "max_connection_age_s",
            "Age at which a connection takes no new request, so that its client connects anew; 0: any age.",
        ),
    ] = _default("max_connection_age_s"),
    max_connection_age_grace_s: Annotated[
        float,
        _option("max_connection_age_grace_s", "How long calls of such a connection may last; streams are cut then."),
    ] = _default("max_connection_age_grace_s"),
    decode_threads: Annotated[
        int | None, _option("decode_threads", "Threads that decode images; default: one for each CPU.")
    ] = None,
    fast_decode: Annotated[
        bool, _option("fast_decode", "Decode large JPEGs at a fraction of their size: faster, slightly other pixels.")
    ] = _default("fast_decode"),
    threads: Annotated[int, _option("threads", "CPU threads of the backend; 0: it decides.")] = _default("threads"),
    lanes: Annotated[
        int | None,
        _option("lanes", "Batches computed side by side; default: measured at start-up on a CPU, 2 on a GPU."),
    ] = None,
    workers: Annotated[
        int, _option("workers", "Processes that take requests, beside one that computes; 1: one process does both.")
    ] = _default("workers"),
    shared_memory: Annotated[
        str,
        _option(
            "shared_memory",
            "Whether tensors may lie in memory that clients share: on, off, or auto, which is on where only this "
            "machine can reach the server.",
        ),
    ] = _default("shared_memory"),
    alias: Annotated[
        list[str] | None,
        _option(
            "alias",
            "Another name, NAME=MODEL[:VERSION], or one that splits requests by weights that sum to 1, "
            "NAME=MODEL:VERSION@WEIGHT,MODEL:VERSION@WEIGHT; may be given several times.",
        ),
    ] = None,
    shadow: Annotated[
        list[str] | None,
        _option(
            "shadow",
            "A model that computes a share of the requests to MODEL, or to NAME, a second time, to be compared: "
            "[NAME=]MODEL[:VERSION]@SHARE; may be given several times.",
        ),
    ] = None,
    token_hashes: Annotated[
        Path | None,
        _option(
            "token_hashes",
            "File of token hashes that `fuseline token new` writes; only calls with one of these tokens are answered.",
        ),
    ] = None,
    backend_timeout_s: Annotated[
        float,
        _option(
            "backend_timeout_s",
            "After how long a call of the backend counts as one that hangs, unless such batches take long; 0: never.",
        ),
    ] = _default("backend_timeout_s"),
    drain_timeout_s: Annotated[
        float, _option("drain_timeout_s", "How long SIGTERM waits for the answers under way.")
    ] = _default("drain_timeout_s"),
    log_format: Annotated[str, _option("log_format", "Lines of the log: text, or json, an object each.")] = _default(
        "log_format"
    ),
    triton_metrics: Annotated[
        bool, _option("triton_metrics", "Show Triton's metrics (nv_inference_…) too, for its dashboards.")
    ] = _default("triton_metrics"),
    engine_cache: Annotated[
        Path | None,
        _option("engine_cache", "Folder for TensorRT engines built here; default: ~/.cache/fuseline/engines."),
    ] = None,
    name: Annotated[
        str | None, _option("name", "Name of the one PACKAGE that is served; default: the package's own.")
    ] = None,
    model_repository: Annotated[
        list[Path] | None,
        _option(
            "model_repository",
            "Folder of models, each a package or a folder of versions such as resnet18/3; may be given several times.",
        ),
    ] = None,
    model_control_mode: Annotated[
        str,
        _option(
            "model_control_mode",
            "How the repository's models change while the server runs: none, poll (when their folders do), explicit "
            "(by request).",
        ),
    ] = _default("model_control_mode"),
    repository_poll_secs: Annotated[
        float, _option("repository_poll_secs", "Seconds between two looks at the repository in the mode poll.")
    ] = _default("repository_poll_secs"),
    load_model: Annotated[
        list[str] | None,
        _option("load_model", "Model that the mode explicit starts with, or * for all; may be given several times."),
    ] = None,
    version_policy: Annotated[
        list[str] | None,
        _option(
            "version_policy",
            "Versions of the repository's models that are served: [MODEL=]latest:COUNT, all or specific:VERSION,…; "
            "may be given several times; default: latest:1.",
        ),
    ] = None,
    set: Annotated[
        list[str] | None,
        _option("set", "Setting of one model, MODEL.SETTING=VALUE, such as resnet18.max_batch=64; may be repeated."),
    ] = None,
) -> None:
    """Serve model packages over gRPC until SIGTERM or Ctrl-C; then answer what was admitted and exit.

    Each model is found under its package's name. A request that names none gets the only one.
    """
    port_source = context.get_parameter_source("port")
    if listen and port_source is not None and port_source.name != "DEFAULT":
        listen = [join_address(host, port), *listen]
    settings = settings_from_flags(
        host=host,
        port=port,
        listen=listen or None,
        http_port=http_port,
        console=console,
        tls_cert=tls_cert,
        tls_key=tls_key,
        tls_client_ca=tls_client_ca,
        backend=backend,
        precision=precision,
        max_batch=max_batch,
        max_queue_rows=max_queue_rows,
        max_queue_ms=max_queue_ms,
        max_delay_ms=max_delay_ms,
        latency_target=latency_target,
        max_message_mb=max_message_mb,
        max_images_per_request=max_images_per_request,
        max_image_pixels=max_image_pixels,
        decode_timeout_s=decode_timeout_s,
        max_requests_per_client=max_requests_per_client,
        max_streams=max_streams,
        max_calls_per_connection=max_calls_per_connection,
        max_connections=max_connections,
        max_header_kb=max_header_kb,
        keepalive_s=keepalive_s,
        keepalive_timeout_s=keepalive_timeout_s,
        max_connection_age_s=max_connection_age_s,
        max_connection_age_grace_s=max_connection_age_grace_s,
        decode_threads=decode_threads,
        fast_decode=fast_decode,
        threads=threads,
        lanes=lanes,
        workers=workers,
        shared_memory=shared_memory,
        alias=alias or None,
        shadow=shadow or None,
        token_hashes=token_hashes,
        backend_timeout_s=backend_timeout_s,
        drain_timeout_s=drain_timeout_s,
        log_format=log_format,
        triton_metrics=triton_metrics,
        engine_cache=engine_cache,
        name=name,
        model_repository=model_repository or None,
        model_control_mode=model_control_mode,
        repository_poll_secs=repository_poll_secs,
        load_model=load_model or None,
        version_policy=version_policy or None,
        set=set or None,
    )
    # By itself gRPC's core writes a line for each handshake that fails, and as errors lines about broken metadata: who
    # reaches a port would fill the log and, as it writes in the threads that serve, hold them up where nobody reads it.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    if not packages and not model_repository:
        raise InputError("nothing is to be served: name a PACKAGE, or a folder of models by --model-repository")
    check_model_settings(settings)
    start_log(form=settings.log_format)
    raise_open_files_limit()
    for link in forgotten_links:
        _log.warning("%s is ignored: Kubernetes sets it for a Service of that name, it is no setting", link)
    # The guard starts before anything large is imported.
    guard = MemoryGuard(memory_limit_bytes(), None if settings.log_format == "text" else _end_for_shortage)
    guard.start()
    from fuseline.serve.package_folders import package_folders

    def announce(server: "Server | Supervisor") -> None:
        guard.stop()
        lines = []
        for model in server.repository:
            backend = model.backend
            kind = "" if model.manifest.task == "single-label" else f"{model.manifest.task}, "
            share = "" if backend.half_share is None else f" in {backend.half_share:.0%} of the layers"
            lines.append(
                f"{model.name} (version {model.version}): {kind}{backend.name} on {backend.device}, "
                f"{backend.precision}{share}, batches of {', '.join(map(str, backend.buckets))}; "
                f"{model.backend_reason}; {model.lanes.line}"
            )
        lines += map(str, (*settings.aliases, *settings.shadows))
        if unguarded := settings.unguarded_addresses:
            warning = (
                f"whoever reaches {' or '.join(unguarded)} may use, change and read this server: it asks nobody who "
                "they are; start it with --token-hashes FILE or --tls-client-ca FILE, or listen on loopback (--host "
                "127.0.0.1)"
            )
            _log.warning("%s", warning)
            lines.append(f"WARNING: {warning}")
        http = f", HTTP on {join_address(host, server.http_port)}" if server.http_port else ""
        lines.append(f"ready in {time.monotonic() - _STARTED:.2f} s: gRPC on {' and '.join(server.addresses)}{http}")
        if server.http_port and settings.has_console:
            scheme = "http" if settings.tls_cert is None else "https"
            lines.append(f"watch it: {scheme}://{join_address(host_to_call(host), server.http_port)}/")
        _say(lines)

    if engine_cache is not None:
        from fuseline.serve.backends.engine.cache import check_engine_cache

        check_engine_cache(engine_cache)
    folders = package_folders(packages or [])
    if name is not None and len(folders) != 1:
        raise InputError(
            f"--name {name} is for one PACKAGE, and {len(folders)} were given; serve that one alone, or name models by "
            "--alias"
        )
    if settings.workers > 1:
        from fuseline.serve.workers.supervisor import run_supervisor

        raise typer.Exit(run_supervisor(folders, settings, announce))
    from fuseline.serve.server import run_server

    raise typer.Exit(run_server(folders, settings, announce))


def _say(lines: list[str]) -> None:
    """Have a thread write `lines` to stdout, for whose reader the server doesn't wait; if it can't, they are logged."""
    stdout = sys.stdout
    if stdout is None:
        return
    data = "".join(f"{line}\n" for line in lines).encode(stdout.encoding, stdout.errors or "strict")
    write = writer_of(stdout)

    def say() -> None:
        if write(data) < len(data):
            _log.warning("stdout can't be written to; what it was to say: %s", "; ".join(lines))

    thread = threading.Thread(target=say, name="fuseline-stdout", daemon=True)
    thread.start()
    atexit.register(thread.join, _LAST_S)


def _end_for_shortage(message: str) -> None:
    """End the process as `MemoryGuard` does, with the reason in a log of JSON.

    This thread writes itself: each turn of another one may be the one in which the kernel kills.
    """
    log = server_log()
    line = f"error: {message}\n" if log is None else log.line(line_record(logging.ERROR, message))
    write_whole(2, line.encode())
    os._exit(InputError.exit_code)


def classify(
    images: Annotated[
        list[Path], typer.Argument(metavar="IMAGE|DIR", help="JPEG, PNG or WebP files, or folders of them.")
    ],
    top_k: Annotated[
        int | None,
        typer.Option(
            help="How many classes to show for each image; default: 5, or all if fewer, and every label that holds."
        ),
    ] = None,
    address: Annotated[
        str,
        typer.Option(
            envvar="FUSELINE_ADDRESS",
            help="Where the server is, or several with commas in between; dns:///NAME:PORT is every address of NAME.",
        ),
    ] = "127.0.0.1:8001",
    model: Annotated[
        str,
        typer.Option(
            help="The model's name, NAME or NAME:VERSION, or an alias; not needed when the server has only one."
        ),
    ] = "",
    token_file: TokenFile = None,
    token_in_clear: TokenInClear = False,
    tls: Tls = False,
    tls_ca: TlsCa = None,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    tls_server_name: TlsServerName = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON object a line for each image.")] = False,
) -> None:
    """Classify images on a running server.

    Folders are searched through, in alphabetical order. An image that can't be read or is refused gets a line on
    stderr; the others are still answered, and the exit code is 2 then.
    """
    from fuseline.serve.commands.classify_command import classify_files

    connection = connection_from_flags(
        token_file, token_in_clear, tls=tls, ca=tls_ca, cert=tls_cert, key=tls_key, server_name=tls_server_name
    )
    raise typer.Exit(classify_files(images, address=address, model=model, top_k=top_k, as_json=as_json, **connection))


def main() -> None:
    """Run `python -m serve`, which is the same as `fuseline serve`."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(serve)
    forget_service_links()
    run_command_line(app)
