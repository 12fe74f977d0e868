"""The tools that `make manifest-test` installs, each run in its own environment."""

import json
import subprocess
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[3]
TOOLS = ROOT / "build" / "manifest-tools" / "bin"
KSERVE = ROOT / ".venv-kserve" / "bin" / "python"
_SCRIPTS = Path(__file__).parent / "tools"

KUBERNETES = tuple(f"1.{minor}" for minor in range(30, 38))
"""Versions whose schemas everything is held against; docs/kubernetes.md names them."""

Document = dict[str, Any]


class Validator:
    """A script that says what is wrong with documents; it runs on, as its schemas take seconds to read."""

    def __init__(self, *command: object) -> None:
        self._process = subprocess.Popen(
            list(map(str, command)), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __call__(self, documents: Sequence[Document]) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(documents) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer, "the validator ended"
        told: dict[str, Any] = json.loads(answer)
        return told

    def close(self) -> None:
        self._process.communicate()


@cache
def _schemas() -> Validator:
    return Validator(TOOLS / "python", _SCRIPTS / "strict_schemas.py", *KUBERNETES)


@cache
def _kserve_schemas() -> Validator:
    return Validator(KSERVE, _SCRIPTS / "kserve_schemas.py")


def close_validators() -> None:
    """End those that run."""
    for validator in (_schemas, _kserve_schemas):
        if validator.cache_info().currsize:
            validator().close()
        validator.cache_clear()


def kustomized(folder: Path) -> list[Document]:
    """What `kubectl kustomize` makes of a folder."""
    return list(yaml.safe_load_all(_output([TOOLS / "kubectl", "kustomize", folder])))


def charted(chart: Path, releases: Sequence[Document]) -> tuple[list[Any], Any]:
    """For each release the documents that Helm renders, or its error; and what Helm's linter says."""
    told = json.loads(_output([TOOLS / "python", _SCRIPTS / "helm_charts.py", chart], json.dumps(releases)))
    return [
        files["error"] if "error" in files else list(yaml.safe_load_all(files["fuseline/templates/manifests.yaml"]))
        for files in told[:-1]
    ], told[-1]


def schema_problems(documents: Sequence[Document]) -> tuple[list[str], dict[str, str]]:
    """What the schemas of Kubernetes, KEDA and the Prometheus operator refuse of `documents`; their versions."""
    told = _schemas()(documents)
    return told["problems"], told["versions"]


def kserve_problems(documents: Sequence[Document]) -> tuple[list[str], str]:
    """What KServe's types refuse of `documents`; KServe's version."""
    if sys.version_info >= (3, 14):
        pytest.skip("KServe's package is for Python up to 3.13")
    told = _kserve_schemas()(documents)
    return told["problems"], told["version"]


def sorted_documents(documents: Sequence[Document]) -> list[Document]:
    """`documents` by kind and name."""
    return sorted(documents, key=lambda its: (its["kind"], its["metadata"]["name"]))


def _output(command: Sequence[object], text: str = "") -> str:
    done = subprocess.run(list(map(str, command)), input=text, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
