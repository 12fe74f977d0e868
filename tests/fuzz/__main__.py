"""`python -m tests.fuzz --seconds 60 [TARGET…]`: broken inputs for each target, for so long.

With atheris (`pip install atheris`) inputs are led by coverage of Python's code, else they are made of sound ones at
random. An input that fails is kept in build/fuzz/, with the command that gives it to its target again; it belongs into
tests/fuzz/crashers/ then, where `make test` tries it each time.
"""

import argparse
import hashlib
import importlib.util
import random
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from contextlib import ExitStack
from pathlib import Path

from tests.fakes.colours import write_colours_package
from tests.fuzz.mutation import mutated
from tests.fuzz.served import served_targets
from tests.fuzz.targets import TARGETS, Target, bounded
from tests.serve.processes import FAST, free_port, server_process

FOUND = Path("build/fuzz")


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0, help="time for each target")
    parser.add_argument("--seed", type=int, help="makes the same inputs again")
    parser.add_argument("--input", type=Path, help="one input for the one target")
    parser.add_argument("--led", action="store_true", help="be led by coverage; used by the command itself")
    parser.add_argument("targets", nargs="*")
    arguments = parser.parse_args()
    with ExitStack() as stack:
        targets = dict(TARGETS)
        if (not arguments.led and not set(arguments.targets) <= set(TARGETS)) or not arguments.targets:
            targets |= _served(stack)
        chosen = {name: targets[name] for name in arguments.targets or targets}
        if arguments.input is not None:
            (target,) = chosen.values()
            target.run(arguments.input.read_bytes())
            return
        if arguments.led:
            ((name, target),) = chosen.items()
            _led_by_coverage(name, target, arguments.seconds)
        failed = False
        for name, target in chosen.items():
            seed = random.randrange(2**32) if arguments.seed is None else arguments.seed
            if name in TARGETS and importlib.util.find_spec("atheris") is not None:
                command = [sys.executable, "-m", "tests.fuzz", "--led", "--seconds", str(arguments.seconds), name]
                failed |= subprocess.run(command, check=False).returncode != 0
            else:
                failed |= not _at_random(name, target, arguments.seconds, seed)
    sys.exit(int(failed))


def _served(stack: ExitStack) -> dict[str, Target]:
    folder = stack.enter_context(tempfile.TemporaryDirectory())
    package = write_colours_package(Path(folder) / "colours")
    server = stack.enter_context(server_process(package, *FAST, "--http-port", free_port()))
    # gRPC logs each message that is none; a server whose log nobody reads would wait for room.
    threading.Thread(target=server.process.stderr.read, daemon=True).start()
    return stack.enter_context(served_targets(server.address, str(server.http_address)))


def _at_random(name: str, target: Target, seconds: float, seed: int) -> bool:
    """Return whether all inputs were borne."""
    ends, count, sound = time.monotonic() + seconds, 0, True
    source, seeds = random.Random(seed), target.seeds()
    while time.monotonic() < ends and sound:
        count += 1
        sound = _borne(name, target, mutated(seeds, source))
    print(f"{name}: {count} inputs, {'none' if sound else 'one'} fails; --seed {seed}", flush=True)
    return sound


def _borne(name: str, target: Target, data: bytes) -> bool:
    try:
        with bounded():
            target.run(data)
    except BaseException:
        FOUND.mkdir(parents=True, exist_ok=True)
        path = FOUND / f"{name.replace(' ', '-')}-{hashlib.sha256(data).hexdigest()[:12]}"
        path.write_bytes(data)
        traceback.print_exc()
        print(f"{name}: {path} fails; again by: python -m tests.fuzz --input {path} {name!r}", flush=True)
        return False
    return True


def _led_by_coverage(name: str, target: Target, seconds: float) -> None:
    import atheris

    corpus = FOUND / "corpus" / name.replace(" ", "-")
    corpus.mkdir(parents=True, exist_ok=True)
    for seed in target.seeds():
        if len(seed) <= 2**20:
            (corpus / hashlib.sha256(seed).hexdigest()[:12]).write_bytes(seed)

    def run(data: bytes) -> None:
        if not _borne(name, target, data):
            raise SystemError("an input fails")

    atheris.instrument_all()
    flags = [f"-max_total_time={seconds:g}", "-rss_limit_mb=4096", "-timeout=30", f"-artifact_prefix={FOUND}/"]
    atheris.Setup([sys.argv[0], *flags, "-print_final_stats=1", str(corpus)], run)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
