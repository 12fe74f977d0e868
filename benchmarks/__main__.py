"""`python -m benchmarks gpu ...`: `fuseline bench` where the command is not installed."""

from fuseline.benchmarks.cli import app
from fuseline.serve.command_line import run_command_line

if __name__ == "__main__":
    run_command_line(app)
