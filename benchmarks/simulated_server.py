"""`python -m fuseline.benchmarks.simulated_server PACKAGE…`: `fuseline serve` on a `SimulatedBackend`."""

from functools import partial

import fuseline.serve.workers.supervisor
from fuseline.benchmarks.simulated_backend import use_simulated_backend
from fuseline.serve.commands.serve_command import main
from fuseline.serve.workers.supervisor import Commands, run_supervisor

if __name__ == "__main__":
    use_simulated_backend()
    commands = Commands(backend=("-m", "fuseline.benchmarks.simulated_backend"))
    fuseline.serve.workers.supervisor.run_supervisor = partial(run_supervisor, commands=commands)
    main()
