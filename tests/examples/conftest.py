"""The examples, imported as Python imports them when they run: with their own folder first on the path."""

import importlib
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch
import typer
from click.testing import Result
from typer.testing import CliRunner

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.fixture(scope="package", autouse=True)
def _examples_on_the_path() -> Iterator[None]:
    sys.path.insert(0, str(EXAMPLES))
    yield
    sys.path.remove(str(EXAMPLES))
    for path in EXAMPLES.glob("*.py"):
        sys.modules.pop(path.stem, None)


@pytest.fixture(scope="package", autouse=True)
def _one_thread() -> Iterator[None]:
    """PyTorch's threads wait by spinning: where other tests want the cores, small work then takes many times longer."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="package")
def train() -> ModuleType:
    return importlib.import_module("train")


@pytest.fixture(scope="package", autouse=True)
def _few_digits(train: ModuleType) -> Iterator[None]:
    """Real digits, but so few that an epoch takes a fraction of a second."""
    full = train.load_data

    def few(name: str, **settings):
        data = full(name, **settings)
        if name != "digits":
            return data
        return replace(
            data,
            train_images=data.train_images[:200],
            train_classes=data.train_classes[:200],
            held_out_images=data.held_out_images[:40],
            held_out_classes=data.held_out_classes[:40],
        )

    train.load_data = few
    yield
    train.load_data = full


class Silent:
    """Listens and says nothing."""

    def progress(self, what, done, total):
        pass

    def say(self, line):
        pass


@pytest.fixture
def silent() -> Silent:
    return Silent()


def invoke(app: typer.Typer, *arguments: str) -> Result:
    """Run a command in this process, as though typed."""
    return CliRunner(env={"COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"}).invoke(app, arguments)


def command(main) -> typer.Typer:
    """The command line of an example's `main`."""
    app = typer.Typer()
    app.command()(main)
    return app
