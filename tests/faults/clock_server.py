"""`python -m serve` in processes whose wall clock is set back by a day three seconds after they were started."""

import sys
import time
from functools import partial

import fuseline.serve.workers.supervisor
from fuseline.serve.commands.serve_command import main
from fuseline.serve.workers import backend_process, worker_process
from fuseline.serve.workers.supervisor import Commands, run_supervisor

BACK_S = 86_400.0
AFTER_S = 3.0

_real_time, _real_time_ns, _started = time.time, time.time_ns, time.monotonic()
_told: list[bool] = []


def _back_s() -> float:
    if time.monotonic() - _started < AFTER_S:
        return 0.0
    if not _told:
        _told.append(True)
        print(f"the clock is set back by {BACK_S:g} s", file=sys.stderr, flush=True)
    return BACK_S


def set_back() -> None:
    """Replace the clock that Python's code of this process reads, gRPC's included."""
    time.time = lambda: _real_time() - _back_s()
    time.time_ns = lambda: _real_time_ns() - int(_back_s() * 1e9)


if __name__ == "__main__":
    set_back()
    its = ("-m", "tests.faults.clock_server")
    if "--as-backend" in sys.argv:
        sys.argv.remove("--as-backend")
        backend_process.main()
    elif "--as-worker" in sys.argv:
        sys.argv.remove("--as-worker")
        worker_process.main()
    else:
        commands = Commands(backend=(*its, "--as-backend"), worker=(*its, "--as-worker"))
        fuseline.serve.workers.supervisor.run_supervisor = partial(run_supervisor, commands=commands)
        main()
