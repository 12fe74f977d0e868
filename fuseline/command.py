"""The `fuseline` command.

A sub-command's module is imported only when that sub-command runs: `fuseline serve` never imports torch, and
`fuseline --help` answers at once.
"""

import importlib
from functools import partial
from importlib.metadata import version
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command, get_group

_COMMANDS = {
    "export": (
        "fuseline.export.commands.export_command",
        "export",
        "Turn a trained ResNet checkpoint into a model package.",
    ),
    "serve": ("fuseline.serve.commands.serve_command", "serve", "Serve model packages over gRPC."),
    "classify": ("fuseline.serve.commands.serve_command", "classify", "Classify images on a running server."),
    "models": (
        "fuseline.serve.commands.models_command",
        "app",
        "List, load and unload the models of a running server.",
    ),
    "health": ("fuseline.serve.commands.health_command", "health", "Ask a running server whether it serves."),
    "token": ("fuseline.serve.commands.token_command", "app", "Make tokens for a server's clients."),
    "convert": (
        "fuseline.export.commands.convert_command",
        "convert",
        "Rename a checkpoint's tensors to another naming scheme.",
    ),
    "inspect": (
        "fuseline.export.commands.inspect_command",
        "inspect",
        "Show what a checkpoint or a model package holds.",
    ),
    "engine": ("fuseline.serve.commands.engine_command", "engine", "Build TensorRT engines for a model package."),
    "doctor": (
        "fuseline.serve.commands.doctor_command",
        "doctor",
        "Show what this machine can serve with, and what would serve better.",
    ),
    "plan": ("fuseline.benchmarks.plan.command", "plan", "Tell how many replicas a load needs, and what they cost."),
    "manifest": (
        "fuseline.deploy.manifest.manifest_command",
        "manifest",
        "Write what Kubernetes, KServe, Ray or Helm needs to run a package.",
    ),
    "bench": ("fuseline.benchmarks.cli", "app", "Measure engines and servers."),
}
"""Sub-command: module, a function or a typer application in it, and what the help says."""


def main() -> None:
    """Run the `fuseline` command."""
    from fuseline.serve.command_line import forget_service_links, run_command_line

    forget_service_links()
    run_command_line(partial(_command_line(), prog_name="fuseline"))


class _LazyCommand(TyperCommand):
    """Stands for a command until it is invoked; the context that it then makes is the real command's."""

    def __init__(self, name: str, module: str, attribute: str, help: str) -> None:
        super().__init__(name, help=help)
        self._module = module
        self._attribute = attribute

    def make_context(self, *args: Any, **kwargs: Any) -> Any:
        target = getattr(importlib.import_module(self._module), self._attribute)
        if not isinstance(target, typer.Typer):
            function, target = target, typer.Typer(add_completion=False)
            target.command()(function)
        return get_command(target).make_context(*args, **kwargs)


def _command_line() -> TyperGroup:
    app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)

    @app.callback()
    def fuseline(
        _: Annotated[
            bool, typer.Option("--version", help="Print the version.", is_eager=True, callback=_print_version)
        ] = False,
    ) -> None:
        """From a trained ResNet checkpoint to a measured, batching gRPC service."""

    group = get_group(app)
    for name, (module, attribute, help) in _COMMANDS.items():
        group.add_command(_LazyCommand(name, module, attribute, help), name)
    return group


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"fuseline {version('fuseline')}")
        raise typer.Exit
