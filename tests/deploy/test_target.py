"""The list of what a GPU machine has."""

from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from deploy.gpu_bundle.roots import check_python
from deploy.gpu_bundle.target import Target, TargetError, read_target

ROOT = Path(__file__).parents[2]


def read(tmp_path: Path, text: str, python: str = "3.12") -> Target:
    (tmp_path / "has.txt").write_text(text)
    return read_target(tmp_path / "has.txt", python)


def test_what_pip_list_and_pip_freeze_print_is_read(tmp_path: Path) -> None:
    text = (
        "# comment\n\ntorch==2.11.0+cu130\nPyYAML==6.0.3  # why\nscipy\nown @ file:///somewhere/own-1.0.whl#sha256=ab\n"
    )
    assert read(tmp_path, text).packages == {
        "torch": Version("2.11.0+cu130"),
        "pyyaml": Version("6.0.3"),
        "scipy": None,
        "own": None,
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("numpy\n-e git+somewhere\n", "line 2: '-e git.somewhere'; NAME==VERSION or NAME was expected"),
        ("numpy>=2", "line 1: 'numpy>=2'"),
        ("numpy==two.three.x", "line 1: 'numpy==two.three.x'"),
        ("numpy==2.0\nNumPy==2.1", "line 2: numpy is listed twice"),
        ("Package    Version\n---------- -------\n", "line 1"),
    ],
)
def test_another_form_is_refused_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(TargetError, match=message):
        read(tmp_path, text)


def test_a_file_that_is_not_there_and_a_python_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(TargetError, match="can't be read"):
        read_target(tmp_path / "nothing.txt", "3.12")
    for python in ("312", "3", "python3.12", "3.12.3", "2.7"):
        with pytest.raises(TargetError, match=f"GPU_PYTHON={python}: a version such as 3.12"):
            read(tmp_path, "numpy", python)


def test_a_python_that_fuseline_does_not_run_on_is_refused() -> None:
    check_python(ROOT / "pyproject.toml", "3.12")
    for python in ("3.9", "3.99"):
        with pytest.raises(TargetError, match=f"GPU_PYTHON={python}: Fuseline runs on Python >=3.11,<3.15"):
            check_python(ROOT / "pyproject.toml", python)


@pytest.mark.parametrize(
    ("requirement", "there"),
    [
        ("torch>=2.11", True),
        ("torch>=2.12", False),
        ("Scipy>=99", True),
        ("onnx", False),
        ("torch==2.11.0", True),
    ],
)
def test_a_version_that_is_not_known_will_do_and_others_are_compared(
    tmp_path: Path, requirement: str, there: bool
) -> None:
    met_by = read(tmp_path, "torch==2.11.0+cu130\nscipy\n").met_by(Requirement(requirement))
    assert (met_by is not None) == there


def test_onnx_runtime_with_cuda_does_for_the_one_for_cpus(tmp_path: Path) -> None:
    target = read(tmp_path, "onnxruntime-gpu==1.30.0\n")
    assert target.met_by(Requirement("onnxruntime>=1.27")) == "onnxruntime-gpu"
    assert target.met_by(Requirement("onnxruntime>=1.31")) is None
    assert read(tmp_path, "onnxruntime\n").met_by(Requirement("onnxruntime-gpu")) is None


@pytest.mark.parametrize(
    ("marker", "wanted"),
    [
        ("python_version < '3.12'", False),
        ("python_full_version >= '3.12'", True),
        ("sys_platform == 'win32'", False),
        ("extra == 'cuda'", False),
        ("platform_machine == 'x86_64' and platform_python_implementation == 'CPython'", True),
    ],
)
def test_markers_are_those_of_the_target_and_not_of_this_machine(tmp_path: Path, marker: str, wanted: bool) -> None:
    target = read(tmp_path, "")
    assert target.wants(Requirement(f"x; {marker}").marker) == wanted
    assert target.wants(Requirement("x; extra == 'cuda'").marker, "cuda")


@pytest.mark.parametrize("path", sorted((ROOT / "deploy" / "gpu-targets").iterdir()), ids=lambda path: path.name)
def test_the_lists_of_the_repository_can_be_read(path: Path) -> None:
    assert read_target(path, "3.12").packages
