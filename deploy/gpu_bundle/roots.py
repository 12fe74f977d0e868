"""What a bundle is for: the requirements of pyproject.toml, in the groups in which they are carried."""

import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from deploy.gpu_bundle.target import TargetError

EXTRAS = ("cpu", "rtx", "export", "bench")
TEST_TOOLS = ("pytest", "pytest-asyncio", "pytest-timeout")
"""Of the extra `dev`: what the tests marked gpu need."""
CUDA = "cuda"
"""The group that is carried apart: it takes the place of the CPU's ONNX Runtime."""
CORE = "core"
_GROUP_OF = {"tensorrt-rtx-cu13": "tensorrt-rtx", "openvino": "openvino", "onnxruntime-gpu": CUDA}
GROUPS = (CORE, "tensorrt-rtx", "openvino", CUDA)
"""In the order of the transfers."""
PURPOSE = {
    CORE: "export, serve, the benchmarks and the GPU tests",
    "tensorrt-rtx": "TensorRT for RTX",
    "openvino": "OpenVINO on the CPU",
    CUDA: "ONNX Runtime on the GPU",
}


def check_python(pyproject: Path, python: str) -> None:
    """Raise `TargetError` if Fuseline doesn't run on `python`, such as `3.12`."""
    supported = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]["requires-python"]
    if not SpecifierSet(supported).contains(f"{python}.0"):
        raise TargetError(f"GPU_PYTHON={python}: Fuseline runs on Python {supported}")


def roots_of(pyproject: Path) -> dict[str, list[Requirement]]:
    """Group to requirements, in the order of `GROUPS`."""
    project = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]
    extras: dict[str, list[str]] = project["optional-dependencies"]
    lines = [*project["dependencies"], *(line for extra in EXTRAS for line in extras[extra])]
    lines += [line for line in extras["dev"] if canonicalize_name(Requirement(line).name) in TEST_TOOLS]
    lines += [line for line in extras["gpu"] if canonicalize_name(Requirement(line).name) == "onnxruntime-gpu"]
    roots: dict[str, list[Requirement]] = {group: [] for group in GROUPS}
    for line in dict.fromkeys(lines):
        requirement = Requirement(line)
        roots[_GROUP_OF.get(canonicalize_name(requirement.name), CORE)].append(requirement)
    return roots
