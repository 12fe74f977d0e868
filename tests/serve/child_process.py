"""Python processes that a test steers: each line that one side says is an event for the other."""

import subprocess
import sys

from tests.serve.processes import ROOT

_PRELUDE = """
import sys
def say(text):
    print(text, flush=True)
def hear():
    return sys.stdin.readline().strip()
"""


class ChildProcess:
    """A Python process that runs `program`, which may `say(text)` and `hear()`; leaving the context kills it."""

    def __init__(self, program: str, *arguments: object, start: bool = True) -> None:
        self._command = [sys.executable, "-c", _PRELUDE + program, *map(str, arguments)]
        self._process: subprocess.Popen[str] | None = None
        if start:
            self.start()

    def start(self) -> None:
        self._process = subprocess.Popen(
            self._command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def hear(self) -> str:
        """Return the next line that it says; fail with what it wrote to stderr if it ends instead."""
        line = self._process.stdout.readline()
        assert line, self._process.communicate()[1]
        return line.strip()

    def say(self, text: str) -> None:
        self._process.stdin.write(f"{text}\n")
        self._process.stdin.flush()

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def __enter__(self) -> "ChildProcess":
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
