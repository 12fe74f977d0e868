"""`python -m benchmarks gpu ...`: `fuseline bench` where the command is not installed."""

from benchmarks.cli import app
from serve.command_line import run_command_line

if __name__ == "__main__":
    run_command_line(app)
