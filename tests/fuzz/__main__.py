"""`python -m tests.fuzz --seconds 60 [TARGET…]`: broken inputs for each target, for so long.

Where atheris is installed, the inputs of targets that need no server are led by coverage of Python's code, each target
in a process of its own; with `--by coverage` those of the others too, whose server is then a thread of that process.
Else, and `--by chance`, they are made of sound ones at random.

An input that fails is kept in build/fuzz/, with the command that gives it to its target again; it belongs into
tests/fuzz/crashers/ then, where `make test` tries it each time.
"""

import argparse
import hashlib
import importlib.util
import os
import random
import re
import subprocess
import sys
import time
import traceback
from contextlib import ExitStack
from pathlib import Path

from tests.fuzz.all_targets import NAMES, SERVED, target_called
from tests.fuzz.mutation import mutated
from tests.fuzz.servers import Servers
from tests.fuzz.target import Target, bounded

FOUND = Path("build/fuzz")
CRASHERS = Path(__file__).parent / "crashers"
_HAS_ATHERIS = importlib.util.find_spec("atheris") is not None


def main() -> None:
    """Run the command: 0 if every input was borne, 1 if one failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0, help="time for each target")
    parser.add_argument("--by", choices=("coverage", "chance"), help="what makes the inputs of every target")
    parser.add_argument("--seed", type=int, help="makes the same inputs again, by chance")
    parser.add_argument("--input", type=Path, help="one input for the one target")
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"MODULE:NAME, or of these: {', '.join(NAMES)}")
    arguments = parser.parse_args()
    names = arguments.targets or NAMES
    if unknown := [name for name in names if name not in NAMES and ":" not in name]:
        parser.error(f"there is no target {unknown[0]!r}; there are {', '.join(NAMES)}")
    if arguments.by == "coverage" and not _HAS_ATHERIS:
        parser.error("--by coverage needs atheris, which has wheels for Linux on x86_64; pip install atheris")
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # it logs each certificate that is none
    led = {
        name
        for name in names
        if arguments.by == "coverage" or (arguments.by is None and _HAS_ATHERIS and name not in SERVED)
    }
    seed = random.randrange(2**32) if arguments.seed is None else arguments.seed
    with ExitStack() as stack:
        servers = Servers(stack)
        if arguments.input is not None:
            (name,) = names
            sound = _is_borne(target_called(name, servers), arguments.input.read_bytes())
        else:
            sound = True
            for name in names:
                if name in led:
                    sound &= _led(name, arguments.seconds)
                else:
                    sound &= _at_random(name, target_called(name, servers), arguments.seconds, seed)
                sound &= _is_silent(name, servers)
    sys.exit(int(not sound))


def _is_silent(name: str, servers: Servers) -> bool:
    """Return whether no server complained in its log, and show what it said.

    What a client sends wrong is told to the client, and to nobody else.
    """
    complaints = servers.complaints()
    sys.stderr.writelines(complaints[:200])
    if complaints:
        print(f"{name}: {len(complaints)} lines in the log of a server, which are above", flush=True)
    return not complaints


def _led(name: str, seconds: float) -> bool:
    """Return whether all inputs were borne, by a process of its own: it ends with the first that isn't."""
    print(f"{name}: led by coverage", flush=True)
    kept, known = FOUND / f"{_file_name(name)}-", CRASHERS / _file_name(name)
    before = _times_of(kept)
    command = [sys.executable, "-m", "tests.fuzz.led", name, "--seconds", str(seconds), "--kept", str(kept)]
    command += ["--corpus", str(FOUND / "corpus" / _file_name(name))]
    command += ["--known", str(known)] if known.exists() else []
    code = subprocess.run(command, check=False).returncode
    if code:
        found = sorted(path for path, time in _times_of(kept).items() if before.get(path) != time)
        print(f"{name}: its process ended with {code}, and kept {len(found) or 'no'} input", flush=True)
        for path in found:
            _say_how_again(name, path)
    return code == 0


def _times_of(kept: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in FOUND.glob(f"{kept.name}*")}


def _at_random(name: str, target: Target, seconds: float, seed: int) -> bool:
    """Return whether all inputs were borne."""
    ends, count, sound = time.monotonic() + seconds, 0, True
    source, seeds = random.Random(seed), target.seeds()
    FOUND.mkdir(parents=True, exist_ok=True)
    # It stays there if this process dies by it, or hangs.
    last = FOUND / f"{_file_name(name)}-last"
    while time.monotonic() < ends and sound:
        count += 1
        data = mutated(seeds, source)
        last.write_bytes(data)
        sound = _is_borne(target, data)
    if sound:
        last.unlink(missing_ok=True)
    else:
        _say_how_again(
            name, last.replace(last.with_name(f"{_file_name(name)}-{hashlib.sha256(data).hexdigest()[:12]}"))
        )
    print(f"{name}: {count} inputs, {'none' if sound else 'one'} fails; --by chance --seed {seed}", flush=True)
    return sound


def _is_borne(target: Target, data: bytes) -> bool:
    try:
        with bounded():
            target.run(data)
    except KeyboardInterrupt:
        raise
    except BaseException:
        traceback.print_exc()
        return False
    return True


def _say_how_again(name: str, path: Path) -> None:
    print(f"{name}: {path} fails; again by: python -m tests.fuzz --input {path} {name!r}", flush=True)


def _file_name(name: str) -> str:
    return re.sub(r"[^\w.-]", "-", name)


if __name__ == "__main__":
    main()
