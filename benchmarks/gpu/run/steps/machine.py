"""Step 1: what this machine is."""

import importlib
import json
import os
import shutil
import subprocess
import sys
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

from fuseline.benchmarks.gpu.device import gpu_facts
from fuseline.benchmarks.gpu.run.job import BUNDLE_VARIABLE, Emit, Job
from fuseline.benchmarks.gpu.run.record import Row
from fuseline.benchmarks.harness.results import only_last_parts, without_folders
from fuseline.serve.doctor import diagnose

_MODULES = ("torch", "onnx", "onnxruntime", "tensorrt", "tensorrt_rtx", "openvino", "numpy", "grpc", "google.protobuf")
_SMI_TIMEOUT_S = 20.0


def run(job: Job, emit: Emit) -> None:  # noqa: ARG001
    """Tell what nvidia-smi, `fuseline doctor` and the imported packages say."""
    facts = gpu_facts()
    if facts is None:
        emit(Row(what="nvidia-smi", status="not here", reason="there is no nvidia-smi here, or it shows no GPU"))
    else:
        emit(Row(what="nvidia-smi", figures=facts))
        _log_nvidia_smi()
    diagnosis = diagnose(None)
    chosen = diagnosis.choice
    emit(
        Row(
            what="fuseline doctor",
            figures={"chosen": None if chosen is None else chosen.title},
            details=json.loads(only_last_parts(json.dumps(diagnosis.as_json))),
        )
    )
    # Before the imports, each of which may fail. In the form of deploy/gpu-targets, for the next bundle.
    there = {found.metadata["Name"]: found.version for found in reversed(list(distributions(path=_own_path())))}
    emit(Row(what="packages of the machine", figures={"packages": len(there)}, details=dict(sorted(there.items()))))
    for name in _MODULES:
        emit(_imported(name))


def _own_path() -> list[str]:
    """Return the folders of the machine's own packages, without the bundle's."""
    bundle = os.environ.get(BUNDLE_VARIABLE)
    return [entry for entry in sys.path if bundle is None or not Path(entry).is_relative_to(bundle)]


def _log_nvidia_smi() -> None:
    path = shutil.which("nvidia-smi")
    assert path is not None
    done = subprocess.run([path], capture_output=True, text=True, timeout=_SMI_TIMEOUT_S, check=False)  # noqa: S603
    print(done.stdout)


def _imported(name: str) -> Row:
    """The version that is imported, which need not be that of what is installed."""
    what = f"import {name}"
    try:
        module = importlib.import_module(name)
    # A library that is there and can't be loaded is a fact, too.
    except (ImportError, OSError, RuntimeError) as error:
        return Row(what=what, status="not here", reason=without_folders(str(error)))
    figures: dict[str, Any] = {"version": str(getattr(module, "__version__", "unknown"))}
    if name == "torch":
        figures["with"] = f"CUDA {module.version.cuda}, cuDNN {module.backends.cudnn.version()}"
    if name == "onnxruntime":
        figures["with"] = ", ".join(module.get_available_providers())
    return Row(what=what, figures=figures)
