"""`fuseline plan`."""

import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fuseline.serve.errors import InputError
from fuseline.serve.latency_target import latency_ms

if TYPE_CHECKING:
    from rich.console import Console

    from fuseline.benchmarks.plan.arrivals import Load
    from fuseline.benchmarks.plan.profile import Profile

MOST_RATE = 1e9
_PIPE_WIDTH = 200


def plan(
    package: Annotated[
        Path | None, typer.Argument(metavar="[PACKAGE]", help="A model package; not needed beside --profile.")
    ] = None,
    rate: Annotated[float | None, typer.Option(help="Requests a second, which come as a Poisson process.")] = None,
    rows: Annotated[int | None, typer.Option(min=1, max=4096, help="Pictures of each request; unless told 1.")] = None,
    burst: Annotated[
        str | None,
        typer.Option(metavar="TIMESx/SECONDS", help="Plan for a burst too, such as 3x/2s: 3 times the rate for 2 s."),
    ] = None,
    trace: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Arrivals instead of --rate: a time in seconds on each line, and perhaps a number of pictures; or CSV "
            "with a header, or JSON lines.",
        ),
    ] = None,
    p50: Annotated[
        str | None, typer.Option("--p50", metavar="LATENCY", help="Half of the requests within so long.")
    ] = None,
    p95: Annotated[str | None, typer.Option("--p95", metavar="LATENCY", help="95 % within so long.")] = None,
    p99: Annotated[
        str | None, typer.Option("--p99", metavar="LATENCY", help="99 % of the requests within so long, as 20ms.")
    ] = None,
    p999: Annotated[str | None, typer.Option("--p999", metavar="LATENCY", help="99.9 % within so long.")] = None,
    deadline: Annotated[
        str | None, typer.Option(metavar="LATENCY", help="Deadline that clients send with each request.")
    ] = None,
    headroom: Annotated[
        float, typer.Option(min=0, max=10, help="Part of the load by which it may grow and still be answered in time.")
    ] = 0.1,
    max_replicas: Annotated[
        int, typer.Option(min=1, max=1_000_000, help="Replicas that may be used at most.")
    ] = 100_000,
    profile: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A measured profile; unless given, one is measured here.")
    ] = None,
    measure_seconds: Annotated[
        float, typer.Option(min=1, max=3600, help="How long the profile is measured about.")
    ] = 60.0,
    save_profile: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Keep the profile that was measured here.")
    ] = None,
    price: Annotated[
        float | None, typer.Option(min=0, max=1e9, help="Price of one replica an hour, in any currency.")
    ] = None,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE.html", help="Also write it as one page that works offline.")
    ] = None,
    json: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Also write every figure here.")] = None,
) -> None:
    """Tell how many replicas a load needs, with which settings, and what they cost, by simulating them.

    The batcher that serves runs on virtual time, on batch times that were measured. The exit code is 1 if no number of
    replicas answers in time.
    """
    from rich.console import Console

    from fuseline.benchmarks.plan.fleet import Fleet
    from fuseline.benchmarks.plan.planning import Asked, plan_for
    from fuseline.benchmarks.plan.scenarios import WHAT_IF_BURST
    from fuseline.benchmarks.plan.side_by_side import side_by_side
    from fuseline.benchmarks.plan.table import as_text
    from fuseline.benchmarks.plan.targets import Targets
    from fuseline.export.commands.output_file import check_output_file, write_output_file
    from fuseline.serve.settings import Settings

    limits = _limits(p50=p50, p95=p95, p99=p99, p999=p999)
    deadline_ms = None if deadline is None else _latency("--deadline", deadline)
    for flag, value in (("--headroom", headroom), ("--measure-seconds", measure_seconds), ("--price", price)):
        if value is not None and not math.isfinite(value):
            raise InputError(f"{flag} {value}: a number was expected")
    for flag, path, suffix in (
        ("--html", html, ".html"),
        ("--json", json, None),
        ("--save-profile", save_profile, None),
    ):
        if path is not None:
            check_output_file(flag, path, suffix)
    if html is not None:
        # What it needs may be missing; better to hear that now.
        from fuseline.benchmarks.plan.page import page_of
    in_burst = None if burst is None else _burst(burst, trace)
    _check_arrivals(rate, trace)
    progress = Console(stderr=True, highlight=False, soft_wrap=True)
    with progress.status("") as status:

        def tell(text: str) -> None:
            status.update(text)

        measured = _profile(package, profile, measure_seconds, save_profile, progress, tell)
        load, arrivals = _load(rate, rows or 1, in_burst, trace, measured)
        most_images = Settings.model_fields["max_images_per_request"].default
        if load.rows > measured.max_batch and load.rows > most_images:
            raise InputError(
                f"a request of {load.rows} pictures: servers take at most {most_images} unless told otherwise"
            )
        fleet = Fleet(measured, load, Targets(limits), None if deadline_ms is None else deadline_ms / 1000)
        asked = Asked(
            package=str(package) if package is not None else measured.model,
            arrivals=arrivals,
            limits_ms=limits,
            deadline_ms=deadline_ms,
            headroom=headroom,
            price=price,
        )
        shown = in_burst or WHAT_IF_BURST
        made = plan_for(fleet, asked, burst=shown, most_replicas=max_replicas, tell=tell, run=side_by_side)
        if html is not None:
            tell("the page")
            write_output_file("--html", html, page_of(made).encode())
        if json is not None:
            from json import dumps

            text = dumps(made.as_json(), indent=2, allow_nan=False) + "\n"
            write_output_file("--json", json, text.encode())
    # A table squeezed into a pipe's 80 columns would lose its figures.
    out = Console(highlight=False, width=None if sys.stdout.isatty() else _PIPE_WIDTH)
    for part in as_text(made):
        out.print(part, markup=False, soft_wrap=isinstance(part, str))
    for written in (html, json):
        if written is not None:
            out.print(f"written: {written}", markup=False, soft_wrap=True)


def _limits(**given: str | None) -> dict[str, float]:
    limits = {name: _latency(f"--{name}", text) for name, text in given.items() if text is not None}
    if not limits:
        raise InputError(
            "in what time should requests be answered? Give --p99 20ms, or --p50, --p95, --p999, or several"
        )
    return limits


def _latency(flag: str, text: str) -> float:
    try:
        value = latency_ms(text)
    except ValueError as error:
        raise InputError(f"{flag}: {error}") from error
    assert isinstance(value, float)
    if not 0 < value <= 3_600_000:
        raise InputError(f"{flag} {text}: a latency above 0 and up to an hour was expected")
    return value


def _burst(text: str, trace: Path | None) -> tuple[float, float]:
    from fuseline.benchmarks.plan.arrivals import burst_from_text

    if trace is not None:
        raise InputError("--burst goes with --rate; a --trace has its own bursts")
    try:
        return burst_from_text(text)
    except ValueError as error:
        raise InputError(f"--burst: {error}") from error


def _check_arrivals(rate: float | None, trace: Path | None) -> None:
    if (rate is None) == (trace is None):
        raise InputError(
            "how many requests come? Give --rate REQUESTS_A_SECOND or --trace FILE"
            if rate is None
            else "--rate and --trace were given; a trace tells the rate itself"
        )
    if rate is not None and not 0 < rate <= MOST_RATE:
        raise InputError(f"--rate {rate:g}: requests a second were expected, above 0 and up to {MOST_RATE:g}")


def _profile(
    package: Path | None,
    path: Path | None,
    seconds: float,
    save: Path | None,
    progress: "Console",
    tell: Callable[[str], None],
) -> "Profile":
    from fuseline.benchmarks.plan.profile import load_profile, save_profile
    from fuseline.serve.model_package import load_package

    if path is None and package is None:
        raise InputError("name a model package, which is measured here, or a measured --profile FILE")
    name = None if package is None else load_package(package).manifest.name
    if path is not None:
        if save is not None:
            raise InputError("--save-profile keeps what is measured here; --profile was given, so nothing is")
        read = load_profile(path)
        if name not in {None, read.model}:
            raise InputError(
                f"--profile {path} was measured of {read.model}, and {package} is {name}; leave --profile out to "
                "measure it here"
            )
        return read
    from fuseline.benchmarks.plan.measure import measure_profile

    assert package is not None
    progress.print(
        f"measuring {name} on this machine for about {seconds:g} s; --profile FILE takes one measured before"
    )
    measured = measure_profile(package, seconds=seconds, say=tell)
    if save is not None:
        save_profile(save, measured)
        progress.print(f"written: {save}", markup=False)
    return measured


def _load(
    rate: float | None, rows: int, burst: tuple[float, float] | None, trace: Path | None, profile: "Profile"
) -> "tuple[Load, str]":
    """The arrivals, and what they are in words."""
    from fuseline.benchmarks.plan.arrivals import Burst, Poisson, replay_of
    from fuseline.benchmarks.plan.trace import read_trace

    if trace is not None:
        recorded = read_trace(trace, rows)
        whole = replay_of(recorded)
        busiest = replay_of(recorded, _trace_requests(whole.pictures_per_s / profile.rows_per_s))
        number, lasted = len(busiest.recorded.seconds), busiest.recorded.seconds[-1]
        told = (
            f"{trace}: {len(recorded.seconds):,} requests in {recorded.seconds[-1]:,.6g} s, "
            f"{_figure(whole.rate_per_s)} a second, {_figure(whole.pictures_per_s)} pictures/s"
        )
        if number < len(recorded.seconds):
            told += f"; planned by the busiest {number:,} in a row, {_figure(number / lasted)} a second"
        return busiest, told
    assert rate is not None
    told = f"{rate:,.10g} requests/s of {rows} {'picture' if rows == 1 else 'pictures'}"
    if burst is None:
        return Poisson(rate, rows), told
    return Burst(rate, rows, *burst), f"{told}, in a burst {burst[0]:g} times as many for {burst[1]:g} s"


def _figure(value: float) -> str:
    return f"{value:,.4g}" if value < 1000 else f"{value:,.0f}"


def _trace_requests(replicas: float) -> int:
    """Requests in a row of a trace that are simulated, where it needs about so many replicas."""
    from fuseline.benchmarks.plan.fleet import LARGEST_GROUP

    return round(40_000 * max(1.0, replicas / LARGEST_GROUP))
