"""The tools that `make manifest-test` installs, each run in its own environment."""

import json
import subprocess
import sys
from collections.abc import Sequence
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
    command = [TOOLS / "python", _SCRIPTS / "strict_schemas.py", *KUBERNETES]
    told = json.loads(_output(command, json.dumps(documents)))
    return told["problems"], told["versions"]


def kserve_problems(documents: Sequence[Document]) -> tuple[list[str], str]:
    """What KServe's types refuse of `documents`; KServe's version."""
    if sys.version_info >= (3, 14):
        pytest.skip("KServe's package is for Python up to 3.13")
    told = json.loads(_output([KSERVE, _SCRIPTS / "kserve_schemas.py"], json.dumps(documents)))
    return told["problems"], told["version"]


def sorted_documents(documents: Sequence[Document]) -> list[Document]:
    """`documents` by kind and name."""
    return sorted(documents, key=lambda its: (its["kind"], its["metadata"]["name"]))


def _output(command: Sequence[object], text: str = "") -> str:
    done = subprocess.run(list(map(str, command)), input=text, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
