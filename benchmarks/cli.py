"""`fuseline bench`: its commands. Each imports what it needs when it runs, so that the help comes at once."""

import typer

from fuseline.benchmarks.checkpoint_reading import read
from fuseline.benchmarks.engines.command import engines
from fuseline.benchmarks.gpu.command import gpu
from fuseline.benchmarks.headline.command import headline
from fuseline.benchmarks.peers.command import peers
from fuseline.benchmarks.plan.check_command import plan
from fuseline.benchmarks.report.command import report
from fuseline.benchmarks.revisions.command import compare
from fuseline.benchmarks.serving.command import loadgen, serve

app = typer.Typer(add_completion=False, no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False)


@app.callback()
def bench() -> None:
    """Measure engines and servers. Answers are checked before they are timed."""


for command in (engines, serve, loadgen, report, peers, compare, headline, read, gpu, plan):
    app.command()(command)
# The headline's former name, which scripts may have.
app.command("spine", hidden=True)(headline)
