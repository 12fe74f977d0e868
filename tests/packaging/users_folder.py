"""A folder in which a user works whose own modules have the names of Fuseline's folders."""

import json
import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.fakes.colours import encoded, plain, write_colours_package
from tests.serve.processes import server_process

OWN_NAMES = ("serve", "export", "protos", "benchmarks")

_CLIENT = """
import sys
from fuseline import Client

with Client(sys.argv[1]) as client:
    print(client.classify("red.png").results[0].predictions[0].label)
assert not {"serve", "export", "protos", "benchmarks"} & set(sys.modules)
"""


@dataclass(frozen=True)
class UsersFolder:
    """The folder, and the Python and the commands that are used in it."""

    folder: Path
    python: Path
    search_path: Sequence[Path] = ()
    """What follows the folder itself in `PYTHONPATH`."""
    fuseline: Sequence[str] = ("-m", "fuseline")
    """The `fuseline` command, as arguments of Python."""

    def fill(self) -> None:
        """Write modules of the user's own, each of which fails when it is imported, a client and a picture."""
        for name in OWN_NAMES:
            failing = f"raise RuntimeError('a user has a module {name}, and it was imported')\n"
            module = self.folder / f"{name}.py" if name in ("serve", "export") else self.folder / name / "__init__.py"
            module.parent.mkdir(exist_ok=True)
            module.write_text(failing)
        (self.folder / "client.py").write_text(_CLIENT)
        (self.folder / "red.png").write_bytes(encoded(plain("red", 40, 40)))

    def run(self, *arguments: object) -> str:
        """Run Python with `arguments` in the folder; it must succeed. Return its stdout."""
        command = [self.python, *map(str, arguments)]
        done = subprocess.run(
            command, cwd=self.folder, env=self._environment, capture_output=True, text=True, timeout=240, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def check_serving(self) -> None:
        """Serve a package with two workers, and classify by the command and by the client."""
        write_colours_package(self.folder / "colours")
        flags = ("--backend", "onnxruntime", "--workers", 2, "--port", 0, "--http-port", 0)
        command = (*self.fuseline, "serve")
        with server_process(
            "colours", *flags, command=command, python=self.python, cwd=self.folder, env=self._environment
        ) as server:
            told = self.run(*self.fuseline, "classify", "red.png", "--address", server.address, "--json")
            assert json.loads(told)["predictions"][0]["label"] == "red"
            assert self.run("client.py", server.address) == "red\n"
            server.process.terminate()
            assert server.end()[0] == 0

    def check_export(self, checkpoint: Path) -> None:
        """Export `checkpoint`, which needs torch."""
        assert "exported/ is complete" in self.run(*self.fuseline, "export", checkpoint, "--out", "exported")

    @property
    def _environment(self) -> dict[str, str]:
        return os.environ | {"PYTHONPATH": os.pathsep.join([".", *map(str, self.search_path)])}
