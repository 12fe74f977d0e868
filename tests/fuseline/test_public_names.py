"""The public names: what they are, and what asking for them imports."""

import inspect
import subprocess
import sys

import pytest

import fuseline
from fuseline.serve import errors
from tests.serve.processes import ROOT


def modules_after(code: str) -> set[str]:
    """Names of what is imported when a new process has run `code`."""
    program = f"{code}\nimport sys\nprint(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    return set(done.stdout.split())


def test_every_public_name_is_there_and_listed() -> None:
    assert set(fuseline.__all__) <= set(dir(fuseline))
    for name in fuseline.__all__:
        assert getattr(fuseline, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'Cleint'"):
        fuseline.Cleint  # noqa: B018


def test_every_error_of_the_tree_is_public() -> None:
    tree = {name: value for name, value in vars(errors).items() if inspect.isclass(value)}
    assert {name: getattr(fuseline, name) for name in tree} == tree
    assert set(tree) <= set(fuseline.__all__)


@pytest.mark.parametrize(
    ("code", "unwanted"),
    [
        ("import fuseline", {"torch", "grpc", "google.protobuf", "numpy", "pydantic", "typer", "rich"}),
        ("from fuseline import Client, AsyncClient, Answer", {"torch", "onnxruntime", "openvino", "typer", "rich"}),
        ("from fuseline import load_package", {"torch", "grpc", "google.protobuf", "numpy", "typer"}),
        ("from fuseline import ExportOptions, export_checkpoint", {"grpc", "fuseline.protos"}),
    ],
    ids=["fuseline", "clients", "load_package", "export"],
)
def test_a_name_imports_only_what_it_needs(code: str, unwanted: set[str]) -> None:
    imported = modules_after(code)
    assert "fuseline.serve.errors" in imported
    assert not imported & unwanted
