"""`fuseline bench serve` and `fuseline bench loadgen`, which measure a running server."""

from pathlib import Path
from typing import Annotated, Any

import typer

from fuseline.benchmarks.harness.options import Json, Seconds, choice_of, choices_of, counts_of, measuring, rates_of
from fuseline.benchmarks.harness.results import command_line
from fuseline.serve.errors import InputError

_MAX_CONCURRENCY = 10_000


def serve(
    address: Annotated[str, typer.Argument(metavar="ADDRESS", help="HOST:PORT of a running server.")],
    concurrency: Annotated[
        str | None,
        typer.Option(
            metavar="N,N,…", help="Closed loop: requests under way at a time. Default, without --rate: 1,8,32."
        ),
    ] = None,
    rate: Annotated[
        str | None,
        typer.Option(metavar="N,N,…", help="Open loop: Poisson arrivals a second, whatever the server does."),
    ] = None,
    seconds: Seconds = 5.0,
    images: Annotated[int, typer.Option(min=1, max=1024, help="Images of each request.")] = 1,
    protocol: Annotated[
        str, typer.Option(metavar="NAME", help="classify, stream, or open-inference for other servers too.")
    ] = "classify",
    streams: Annotated[int, typer.Option(min=1, max=256, help="Of --protocol stream, in each process.")] = 1,
    deadline_ms: Annotated[
        float | None, typer.Option(min=0.001, metavar="MS", help="Count answers within it as goodput.")
    ] = None,
    send_deadline: Annotated[
        bool, typer.Option("--send-deadline", help="Give --deadline-ms to the server too; it may then refuse.")
    ] = False,
    processes: Annotated[int, typer.Option(min=1, max=256, help="Processes of the load generator.")] = 1,
    seed: Annotated[int, typer.Option(min=0, help="Of the arrivals.")] = 0,
    package: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Check the answers against this package, run here.")
    ] = None,
    server_pid: Annotated[
        int | None, typer.Option(min=1, metavar="PID", help="The server's process, to measure its CPU time.")
    ] = None,
    metrics_address: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="The server's metrics, to count its batches.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(metavar="NAME", help="Of --protocol open-inference; default: the only one.")
    ] = None,
    input_name: Annotated[str | None, typer.Option(metavar="NAME", help="Its input; default: the only one.")] = None,
    output_name: Annotated[str | None, typer.Option(metavar="NAME", help="Its output; default: the only one.")] = None,
    precision: Annotated[
        str,
        typer.Option(
            metavar="NAME", help="Of --protocol open-inference, which doesn't tell it: how close answers are."
        ),
    ] = "fp32",
    json: Json = None,
) -> None:
    """Measure a running server: throughput, latency, goodput, batches, CPU time. Raw uint8 images are sent."""
    concurrencies = counts_of("--concurrency", concurrency, _MAX_CONCURRENCY) if concurrency is not None else ()
    rates = rates_of(rate) if rate is not None else ()
    if concurrency is None and rate is None:
        concurrencies = (1, 8, 32)
    from fuseline.benchmarks.harness.subject import Subject
    from fuseline.benchmarks.load.protocols import PROTOCOLS
    from fuseline.benchmarks.load.server_watch import with_metrics
    from fuseline.benchmarks.load.target import connect, connect_open_inference, expect_logits_of
    from fuseline.benchmarks.serving.measure import sweep, sweep_rates
    from fuseline.benchmarks.serving.table import as_json, as_table
    from fuseline.serve.precision import PRECISIONS

    protocol = choice_of("--protocol", protocol, PROTOCOLS)
    precision = choice_of("--precision", precision, PRECISIONS)
    if protocol != "open-inference" and (given := model or input_name or output_name):
        raise InputError(f"{given}: --model, --input-name and --output-name go with --protocol open-inference")
    if send_deadline and (deadline_ms is None or not rates):
        raise InputError("--send-deadline needs --deadline-ms and --rate")
    command = command_line(
        "serve",
        "ADDRESS",
        concurrency=concurrency,
        rate=rate,
        seconds=seconds,
        images=images,
        protocol=protocol,
        streams=streams if protocol == "stream" else None,
        deadline_ms=deadline_ms,
        processes=processes,
        seed=seed if rates else None,
        package=package,
        model=model,
        input_name=input_name,
        output_name=output_name,
    ) + (" --send-deadline" if send_deadline else "")
    with measuring("serve", command, json) as (say, finish):
        subject = None if package is None else Subject(package.name, package, None)
        if protocol == "open-inference":
            target = connect_open_inference(
                address,
                server_pid,
                model=model,
                input_name=input_name,
                output_name=output_name,
                precision=precision,
                package=subject,
            )
        else:
            target = connect(address, server_pid, stream=protocol == "stream")
        if metrics_address is not None:
            target = with_metrics(target, metrics_address)
        if subject is not None:
            target = expect_logits_of(subject, target)
        settings: dict[str, Any] = {
            "seconds": seconds,
            "images_per_request": images,
            "processes": processes,
            "streams": streams,
            "deadline_s": None if deadline_ms is None else deadline_ms / 1e3,
        }
        closed = sweep(target, concurrencies, say, **settings)
        opened = sweep_rates(target, rates, say, seed=seed, send_deadline=send_deadline, **settings)
        finish(as_table(target, closed, opened), {"deadline_ms": deadline_ms} | as_json(target, closed, opened))


def loadgen(
    address: Annotated[str, typer.Argument(metavar="ADDRESS", help="HOST:PORT of a running server.")],
    scenario: Annotated[
        str, typer.Option(metavar="NAME,…", help="Of SingleStream, Offline and Server.")
    ] = "SingleStream,Offline,Server",
    rounds: Annotated[int, typer.Option(min=1, max=1000, help="How often each measures.")] = 3,
    seconds: Seconds = 5.0,
    rate: Annotated[float, typer.Option(min=0.1, max=1e6, help="Of Server: arrivals a second.")] = 20.0,
    concurrency: Annotated[
        int, typer.Option(min=1, max=_MAX_CONCURRENCY, help="Of Offline: requests under way at a time.")
    ] = 32,
    deadline_ms: Annotated[float, typer.Option(min=0.001, help="Of Server: what LoadGen's verdict is about.")] = 100.0,
    package: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Check the answers against this package, run here.")
    ] = None,
    json: Json = None,
) -> None:
    """Measure a running `fuseline serve` by MLPerf LoadGen and by our own load generator, turn by turn."""
    from fuseline.benchmarks.harness.subject import Subject
    from fuseline.benchmarks.load.target import connect, expect_logits_of
    from fuseline.benchmarks.serving.loadgen import SCENARIOS
    from fuseline.benchmarks.serving.loadgen_comparison import as_json, as_table, compare_with_loadgen

    scenarios = choices_of("--scenario", scenario, SCENARIOS)
    command = command_line(
        "loadgen",
        "ADDRESS",
        scenario=scenario,
        rounds=rounds,
        seconds=seconds,
        rate=rate,
        concurrency=concurrency,
        deadline_ms=deadline_ms,
        package=package,
    )
    with measuring("loadgen", command, json) as (say, finish):
        target = connect(address)
        if package is not None:
            target = expect_logits_of(Subject(package.name, package, None), target)
        found = compare_with_loadgen(
            target,
            scenarios,
            rounds=rounds,
            seconds=seconds,
            rate_per_s=rate,
            concurrency=concurrency,
            deadline_s=deadline_ms / 1e3,
            say=say,
        )
        finish(as_table(target, found), as_json(target, found))
