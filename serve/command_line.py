"""How every command begins and ends.

A command may print any text: characters that the terminal's encoding lacks are replaced. Its errors become one line on
stderr and an exit code, never a traceback.
"""

import codecs
import io
import logging
import os
import re
import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import NoReturn

from fuseline.serve.errors import FuselineError

_log = logging.getLogger(__name__)

forgotten_links: list[str] = []
"""`NAME=VALUE` of each variable that `forget_service_links` removed, for the log of a server, which begins later."""

_LINK = re.compile(r"(tcp|udp|sctp)://\S+:\d+")

_STAND_INS = {
    **dict.fromkeys(range(0x2580, 0x25A0), "#"),  # block elements: bars
    **dict.fromkeys(range(0x2500, 0x2580), "-"),  # box drawing: tables and progress bars
    **dict.fromkeys(range(0x2800, 0x2900), "."),  # Braille: spinners
    ord("✓"): "+",
    ord("✗"): "x",
    ord("…"): "~",
    ord("·"): "-",
    ord("×"): "x",
}
"""Code points that tables, bars and ticks are drawn with, and for each a character as wide that every encoding has."""

_REPLACE = "fuseline.replace"

_EXTRA_OF_MODULE = {
    **dict.fromkeys(("torch", "torchvision", "onnx", "onnxscript", "safetensors", "jinja2"), "export"),
    **dict.fromkeys(
        ("hdrh", "matplotlib", "mlperf_loadgen", "pytest", "pytest_benchmark", "scipy", "sklearn"), "bench"
    ),
    "yaml": "deploy",
}


def run_command_line(command: Callable[[], object]) -> None:
    """Run `command`; exit with 2 for wrong input or a missing extra, 1 for failed work, 130 or 143 for a signal.

    SIGTERM (143) ends `command` as Ctrl-C (130) does: not at once, but after it has removed its temporary files and
    ended the processes that it started. A second SIGTERM ends it at once. A server has its own handler while it serves.
    Errors outside the tree of `fuseline.serve.errors` are defects and keep their traceback.
    """
    _print_in_any_encoding()
    before = signal.signal(signal.SIGTERM, _exit_tidily)
    try:
        command()
    except FuselineError as error:
        _end(str(error), error.exit_code)
    except ModuleNotFoundError as error:
        extra = _EXTRA_OF_MODULE.get((error.name or "").partition(".")[0])
        if extra is None:
            raise
        _end(f"{error.name} is not installed; pip install 'fuseline[{extra}]'", 2)
    except KeyboardInterrupt:
        _end("interrupted", 130)
    except SystemExit as end:
        if end.code in (130, 143):
            # The interpreter's end waits for threads. A Ctrl-C then must not end that wait alone, which would leave
            # threads in native code that call an interpreter which is gone: it ends the process.
            signal.signal(signal.SIGINT, signal.SIG_DFL)
        raise
    finally:
        signal.signal(signal.SIGTERM, before)


def forget_service_links() -> None:
    """Remove the environment variables that Kubernetes sets for Services and that a flag would read as its own.

    A Service called "fuseline" makes `FUSELINE_PORT`, one called "fuseline-http" `FUSELINE_HTTP_PORT`: URLs such as
    tcp://10.0.0.1:8001 (https://kubernetes.io/docs/concepts/services-networking/service), while flags read numbers
    there. No flag can have the name of Kubernetes' other variables, which have `_SERVICE_HOST`, `_SERVICE_PORT` or
    `_PORT_8001_TCP` in them. Every other value stays, to be refused if it is wrong.
    """
    links = {name: value for name, value in os.environ.items() if re.fullmatch(r"FUSELINE_(\w+_)?PORT", name)}
    forgotten_links[:] = [f"{name}={value}" for name, value in links.items() if _LINK.fullmatch(value)]
    for link in forgotten_links:
        del os.environ[link.partition("=")[0]]


def _print_in_any_encoding() -> None:
    """Let stdout and stderr take every text: characters that their encoding lacks become stand-ins or escapes."""
    codecs.register_error(_REPLACE, _replaced)
    for stream in (sys.stdout, sys.stderr):
        # Other streams, as those of tests and notebooks, have no encoding that could lack a character.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=_REPLACE)


def _replaced(error: UnicodeError) -> tuple[str | bytes, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lacking = error.object[error.start : error.end]
    return "".join(_STAND_INS.get(ord(c)) or _escaped(c) for c in lacking), error.end


def _escaped(character: str) -> str:
    return character.encode("ascii", "backslashreplace").decode("ascii")


def _exit_tidily(number: int, _: FrameType | None) -> NoReturn:
    signal.signal(number, signal.SIG_DFL)
    sys.exit(128 + number)


def _end(message: str, exit_code: int) -> None:
    # Commands that log nothing don't import the log. Where it is JSON, so is its last line.
    module = sys.modules.get("fuseline.serve.process.server_log")
    log = None if module is None else module.server_log()
    if log is not None and log.form == "json":
        _log.error("%s", message)
    else:
        sys.stderr.write(f"error: {message}\n")
    sys.exit(exit_code)
