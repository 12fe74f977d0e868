"""`python -m serve` with a backend that does wrong on pictures of one colour, each colour its own wrong.

    255  hangs for ever, saying `hanging` in a line on stdout        254  raises
    253  answers NaN in the rows of that picture                      252  answers too few rows

Flags of its own: `--on-loop` calls the backend on the event loop, else in a lane's thread; with `--no-spare` no other
instance of the backend can be opened. It takes `--workers` too.
"""

import sys
import threading
from functools import partial

import numpy as np
from numpy.typing import NDArray

import fuseline.serve.model
import fuseline.serve.model_source
import fuseline.serve.workers.supervisor
from fuseline.serve.backends import open_backend
from fuseline.serve.backends.base import Backend
from fuseline.serve.batching.policy import CpuBatching
from fuseline.serve.commands.serve_command import main
from fuseline.serve.errors import BackendError
from fuseline.serve.model import load_model
from fuseline.serve.workers import backend_process
from fuseline.serve.workers.supervisor import Commands, run_supervisor
from tests.fakes.backends import WrappedBackend

HANGS, RAISES, NOT_A_NUMBER, TOO_FEW = 255, 254, 253, 252

_OWN_FLAGS = {"--on-loop", "--no-spare"}
_AS_BACKEND = "--as-backend"


class FaultyBackend(WrappedBackend):
    def infer(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        wrong = {number for number in range(TOO_FEW, HANGS + 1) if (pixels == number).all(axis=(1, 2, 3)).any()}
        if HANGS in wrong:
            print("hanging", flush=True)
            threading.Event().wait()
        if RAISES in wrong:
            raise RuntimeError("the device fell off the bus")
        logits = super().infer(pixels)
        if NOT_A_NUMBER in wrong:
            logits[(pixels == NOT_A_NUMBER).all(axis=(1, 2, 3))] = np.nan
        return logits[:-1] if TOO_FEW in wrong else logits


def prepare(flags: set[str]) -> None:
    """Have every model that this process loads computed so."""
    opened: list[Backend] = []

    def open_faulty(*args: object, **kwargs: object) -> tuple[Backend, str]:
        if opened and "--no-spare" in flags:
            raise BackendError("no memory is left for another")
        real, reason = open_backend(*args, **kwargs)
        opened.append(FaultyBackend(real))
        return opened[-1], reason

    fuseline.serve.model.open_backend = open_faulty
    cpu = CpuBatching(inline_below_ms=1e6 if "--on-loop" in flags else 0.0)
    fuseline.serve.model_source.load_model = partial(load_model, cpu=cpu)


if __name__ == "__main__":
    its = _OWN_FLAGS.intersection(sys.argv)
    sys.argv = [argument for argument in sys.argv if argument not in its]
    prepare(its)
    if _AS_BACKEND in sys.argv:
        sys.argv.remove(_AS_BACKEND)
        backend_process.main(fuseline.serve.model_source.load_model)
    else:
        commands = Commands(backend=("-m", "tests.faults.faulty_server", _AS_BACKEND, *its))
        fuseline.serve.workers.supervisor.run_supervisor = partial(run_supervisor, commands=commands)
        main()
