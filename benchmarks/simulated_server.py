"""`python -m benchmarks.simulated_server PACKAGE…`: `fuseline serve` on a `SimulatedBackend`."""

from functools import partial

import serve.workers.supervisor
from benchmarks.simulated_backend import use_simulated_backend
from serve.cli import main
from serve.workers.supervisor import Commands, run_supervisor

if __name__ == "__main__":
    use_simulated_backend()
    commands = Commands(backend=("-m", "benchmarks.simulated_backend"))
    serve.workers.supervisor.run_supervisor = partial(run_supervisor, commands=commands)
    main()
