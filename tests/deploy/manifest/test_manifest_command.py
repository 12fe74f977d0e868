"""`fuseline manifest`, with a measurement that is there, and once with a real one."""

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from fuseline.deploy.manifest.measurement import read_measurement
from fuseline.serve.model_package import MANIFEST_NAME
from tests.commands import Run, only_error
from tests.deploy.manifest.sample import measured
from tests.fakes.colours import write_colours_package
from tests.serve.processes import ROOT


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_colours_package(tmp_path_factory.mktemp("packages") / "colours")


def measurement_of(package: Path, folder: Path, **changes: object) -> Path:
    file = folder / "measured.json"
    digest = hashlib.sha256((package / MANIFEST_NAME).read_bytes()).hexdigest()
    file.write_text(measured(package="colours", manifest_sha256=digest, **changes).model_dump_json())
    return file


@pytest.mark.parametrize(
    ("target", "kinds"),
    [
        ("kubernetes", ["Deployment", "Service", "Service", "PodDisruptionBudget", "NetworkPolicy"]),
        ("kserve", ["ClusterServingRuntime", "InferenceService"]),
        ("ray", [None]),
        ("helm", [None]),
    ],
)
def test_each_target_is_written_with_what_was_measured_above(
    run_fuseline: Run, package: Path, tmp_path: Path, target: str, kinds: list[str | None]
) -> None:
    file = measurement_of(package, tmp_path)
    code, stdout, stderr = run_fuseline("manifest", target, package, "--measured", file)
    assert (code, stderr) == (0, "")
    assert [its.get("kind") for its in yaml.safe_load_all(stdout)] == kinds
    assert stdout.startswith(f"# Written by `fuseline manifest {target}`.\n# Measured with colours (version 1) by ")


def test_a_package_is_really_measured_and_the_measurement_kept(
    run_fuseline: Run, package: Path, tmp_path: Path
) -> None:
    file, out = tmp_path / "m.json", tmp_path / "colours.yaml"
    code, stdout, stderr = run_fuseline(
        *("manifest", "kubernetes", package, "--seconds", 1, "--cpus", 1, "--measured", file, "--out", out)
    )
    assert (code, stdout) == (0, ""), stderr
    assert stderr == "measuring colours on this machine, 1 s of load\n"
    found = read_measurement(file)
    assert (found.package, found.cpus, found.device, found.row_bytes) == ("colours", 1, "CPU", 8 * 8 * 3)
    assert found.images > 0
    assert 20 * 2**20 < found.ready_bytes <= found.peak_bytes
    assert found.batch_rows >= 1
    deployment = next(yaml.safe_load_all(out.read_text()))
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    assert container["resources"]["requests"]["cpu"] == "1"
    # The second time it is taken from the file, and says so by not measuring.
    again = run_fuseline("manifest", "kubernetes", package, "--measured", file, "--out", out, "--force")
    assert (again.exit_code, again.stderr) == (0, "")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--replicas", "0"), "--replicas was given '0'"),
        (("--replicas", "-3"), "--replicas was given '-3'"),
        (("--replicas", "5:2"), "--replicas was given '5:2'"),
        (("--replicas", "some"), "--replicas was given 'some'"),
        (("--image", 'a"\nb'), "--image was given "),
        (("--name", "A_b"), "--name was given 'A_b'"),
        (("--gpu", "amd.com/gpu"), "--gpu was given 'amd.com/gpu'"),
        (("--gpu", "nvidia.com/gpu"), "ran on CPU"),
        (("--autoscaler", "vpa"), "--autoscaler was given 'vpa'"),
        (("--storage-uri", "pvc://a/b"), "--storage-uri is for kserve"),
        (("--package-path", "/a"), "--package-path is for ray"),
        (("--cpus", "7"), "was measured with 2"),
        (("--out", "/no/such/folder/x.yaml"), "there is no folder /no/such/folder"),
    ],
)
def test_wrong_flags_are_one_line_and_2(
    run_fuseline: Run, package: Path, tmp_path: Path, flags: tuple[str, ...], words: str
) -> None:
    file = measurement_of(package, tmp_path)
    result = run_fuseline("manifest", "kubernetes", package, "--measured", file, *flags)
    assert words in only_error(result)
    assert result.stdout == ""


def test_a_target_or_a_package_that_there_is_not_is_one_line_and_2(
    run_fuseline: Run, package: Path, tmp_path: Path
) -> None:
    assert "no manifest for 'swarm'; expected kubernetes, kserve, ray or helm" in only_error(
        run_fuseline("manifest", "swarm", package)
    )
    assert "there is no folder" in only_error(run_fuseline("manifest", "kubernetes", tmp_path / "none"))
    assert "is no model package" in only_error(run_fuseline("manifest", "kubernetes", tmp_path))


def test_a_package_that_can_t_be_served_is_one_line_and_2(run_fuseline: Run, tmp_path: Path) -> None:
    broken = write_colours_package(tmp_path / "broken")
    (broken / "model.onnx").write_bytes(b"version https://git-lfs.github.com/spec/v1")
    error = only_error(run_fuseline("manifest", "kubernetes", broken, "--seconds", 1))
    assert "as it can't be served here: " in error
    assert "sha256" in error


def test_another_package_s_measurement_is_refused(run_fuseline: Run, package: Path, tmp_path: Path) -> None:
    file = tmp_path / "m.json"
    file.write_text(measured().model_dump_json())
    result = run_fuseline("manifest", "kubernetes", package, "--measured", file)
    assert "was measured with another package" in only_error(result)


def test_a_measurement_that_could_not_be_kept_is_not_made(run_fuseline: Run, package: Path, tmp_path: Path) -> None:
    result = run_fuseline("manifest", "kubernetes", package, "--measured", tmp_path / "none" / "m.json")
    assert "give another --measured" in only_error(result)


def test_more_cpus_than_there_are_are_refused_before_anything_is_measured(run_fuseline: Run, package: Path) -> None:
    assert "--cpus was given 4096" in only_error(run_fuseline("manifest", "kubernetes", package, "--cpus", 4096))


def test_what_is_there_is_kept_unless_force_is_given_and_it_is_ours(
    run_fuseline: Run, package: Path, tmp_path: Path
) -> None:
    file, out = measurement_of(package, tmp_path), tmp_path / "out.yaml"
    command = ("manifest", "kubernetes", package, "--measured", file, "--out", out)
    assert run_fuseline(*command).exit_code == 0
    written = out.read_text()
    assert "exists and is kept; --force replaces it" in only_error(run_fuseline(*command))
    assert run_fuseline(*command, "--replicas", 3, "--force").exit_code == 0
    assert out.read_text() != written
    out.write_text("mine")
    assert "so --force won't replace it" in only_error(run_fuseline(*command, "--force"))
    assert out.read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_helm_s_folder_is_a_whole_chart_and_replaced_only_if_it_is_ours(
    run_fuseline: Run, package: Path, tmp_path: Path
) -> None:
    file, out = measurement_of(package, tmp_path), tmp_path / "chart"
    command = ("manifest", "helm", package, "--measured", file, "--out", out)
    assert run_fuseline(*command).exit_code == 0
    assert yaml.safe_load((out / "values.yaml").read_text())["image"]["repository"] == "fuseline-colours"
    assert not any(path.is_symlink() for path in out.rglob("*"))
    assert "exists and is kept" in only_error(run_fuseline(*command))
    assert run_fuseline(*command, "--force").exit_code == 0
    (out / "values.yaml").write_text("mine: true\n")
    assert "is no chart of `fuseline manifest`" in only_error(run_fuseline(*command, "--force"))
    assert (out / "values.yaml").read_text() == "mine: true\n"


def test_without_pyyaml_one_line_names_the_extra(package: Path) -> None:
    code = (
        "import sys\n"
        "sys.modules['yaml'] = None\n"
        f"sys.argv = ['fuseline', 'manifest', 'kubernetes', {str(package)!r}]\n"
        "from fuseline.command import main\n"
        "main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (2, "error: yaml is not installed; pip install 'fuseline[deploy]'\n")
