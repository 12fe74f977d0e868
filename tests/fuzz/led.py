"""`python -m tests.fuzz.led TARGET …`: inputs for one target, led by coverage; `python -m tests.fuzz` runs it.

Modules are instrumented as they are imported, so nothing that a target reads with may be imported before. Only what
reads the bytes is: torch alone would take minutes.
"""

import argparse
import contextlib
import hashlib
import io
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import atheris

if TYPE_CHECKING:
    from tests.fuzz.target import Target

INSTRUMENTED = ("fuseline", "PIL", "pickletools", "safetensors", "starlette", "uvicorn", "zipfile")
"""Packages whose Python reads bytes of others."""


def main() -> None:
    """Run the command; it ends the process, with 0 if nothing failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target")
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--corpus", type=Path, required=True, help="folder of inputs, to which found ones are added")
    parser.add_argument("--kept", required=True, help="begin of the paths of inputs that fail")
    parser.add_argument("--known", type=Path, help="folder of inputs that failed once")
    arguments = parser.parse_args()
    begun = time.monotonic()
    with atheris.instrument_imports(include=INSTRUMENTED), contextlib.ExitStack() as stack:
        with contextlib.redirect_stderr(io.StringIO()) as said:
            from tests.fuzz.all_targets import target_called
            from tests.fuzz.servers import Servers
            from tests.fuzz.target import bounded

            target = target_called(arguments.target, Servers(stack, in_thread=True))

        count = said.getvalue().count("INFO: Instrumenting")
        print(f"{count} modules instrumented in {time.monotonic() - begun:.1f} s", flush=True)

        def run(data: bytes) -> None:
            with bounded():
                target.run(data)

        _write_seeds(target, arguments.corpus)
        flags = (
            f"-max_total_time={arguments.seconds:g}",
            f"-artifact_prefix={arguments.kept}",
            "-rss_limit_mb=4096",
            "-timeout=30",
            "-print_final_stats=1",
            "-verbosity=0",
        )
        folders = [arguments.corpus, *([arguments.known] if arguments.known else [])]
        atheris.Setup([sys.argv[0], *flags, *map(str, folders)], run)
        atheris.Fuzz()


def _write_seeds(target: "Target", corpus: Path) -> None:
    corpus.mkdir(parents=True, exist_ok=True)
    for seed in target.seeds():
        if len(seed) <= 2**20:
            (corpus / hashlib.sha256(seed).hexdigest()[:12]).write_bytes(seed)


if __name__ == "__main__":
    main()
