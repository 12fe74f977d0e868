"""`fuseline engine`, with TensorRT for RTX itself and no GPU."""

import hashlib
import re
import tempfile
from contextlib import nullcontext
from shutil import copytree

import pytest

from fuseline.serve import package_engines
from fuseline.serve.backends.engine.key import EngineDetails
from fuseline.serve.backends.engine.lock import file_lock
from fuseline.serve.errors import BackendError
from fuseline.serve.model_package import load_package
from tests.export.small_graph import quantised_graph, small_graph
from tests.serve.backends.engine_packages import GRAPHS, package_of
from tests.serve.child_process import ChildProcess

pytest.importorskip("tensorrt_rtx", reason="pip install 'fuseline[rtx]' to build engines in tests")


@pytest.fixture
def run(run_fuseline):
    """Run `fuseline engine ARGUMENTS`; return exit code, stdout's lines, stderr."""

    def run(*arguments):
        outcome = run_fuseline("engine", *arguments)
        return outcome.exit_code, outcome.stdout.splitlines(), outcome.stderr

    return run


@pytest.fixture
def folder(tmp_path):
    return package_of(tmp_path / "small", graphs=GRAPHS | {"int8": quantised_graph()}).folder


def engines_of(folder):
    """(capability, precision) of the engines in the manifest, whose bytes were checked."""
    package = load_package(folder)
    engines = [artifact for artifact in package.manifest.artifacts if artifact.format == "tensorrt_rtx"]
    for engine in engines:
        package.checked_path(engine)
        details = EngineDetails.model_validate(engine.details)
        assert engine.path == f"engines/{details.key}.plan"
        assert details.graph_sha256 == package.find("onnx", engine.precision).sha256
    return [(engine.details["compute_capability"], engine.precision) for engine in engines]


def test_engines_for_several_gpus_are_built_added_and_told_of_and_the_second_time_there_is_nothing_to_do(folder, run):
    before = load_package(folder).manifest
    code, lines, stderr = run(folder, "--for", "sm89,sm120")
    assert code == 0, stderr
    assert engines_of(folder) == [("sm89", "fp16"), ("sm120", "fp16")]
    for line, capability in zip(lines, ("sm89", "sm120"), strict=True):
        assert f"-{capability}-b1.32.32-" in line
        assert "fp16, up to 32 images a batch): built in" in line
        assert " MiB; layers: 3 fp16; multiply-adds: 100.0% fp16" in line
    assert "building an engine for sm120: 50 %" in stderr
    after = load_package(folder).manifest
    assert after.artifacts[: len(before.artifacts)] == before.artifacts
    assert after.model_copy(update={"artifacts": ()}) == before.model_copy(update={"artifacts": ()})
    written = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    code, lines, stderr = run(folder, "--for", "sm120, sm89,sm120")
    assert (code, stderr) == (0, "")
    assert [line.endswith("is there already and fits; nothing was built") for line in lines] == [True, True]
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == written


@pytest.mark.parametrize(("precision", "told"), [("fp32", "layers: 3 fp32"), ("int8", "layers: 1 fp32, 2 int8")])
def test_another_precision_is_another_engine(precision, told, folder, run):
    code, lines, stderr = run(folder, "--for", "sm89", "--precision", precision, "--max-batch", 4)
    assert code == 0, stderr
    assert told in lines[0]
    assert engines_of(folder) == [("sm89", precision)]
    assert load_package(folder).manifest.artifacts[-1].details["profile"] == [1, 4, 4]


def test_a_damaged_engine_is_built_anew(folder, run):
    run(folder, "--for", "sm89")
    (plan,) = (folder / "engines").glob("*.plan")
    plan.write_bytes(b"evil")
    _, (line,), _ = run(folder, "--for", "sm89")
    assert "built in" in line
    assert engines_of(folder) == [("sm89", "fp16")]


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["--for", "sm90"], r"can't build for 'sm90', it builds for sm75, .*sm89"),
        (["--for", "sm89,sm1"], r"can't build for 'sm1'"),
        (["--for", "sm89,,sm120"], "separated by commas were expected"),
        (["--for", "sm89", "--precision", "bf16"], "one of auto, fp16, fp32, int8 was expected"),
    ],
)
def test_wrong_input_is_one_line_and_2_and_changes_nothing(arguments, error, folder, run):
    code, lines, stderr = run(folder, *arguments)
    assert (code, lines) == (2, [])
    assert stderr.startswith("error: ")
    assert re.search(error, stderr)
    assert not engines_of(folder)
    assert not list((folder / "engines").iterdir())


def test_what_is_no_package_is_one_line_and_2(tmp_path, run):
    code, _, stderr = run(tmp_path / "nowhere", "--for", "sm89")
    assert (code, stderr.startswith("error: there is no folder")) == (2, True)


def test_a_package_that_cannot_be_written_to_says_so_before_anything_is_built(tmp_path, run):
    package = package_of(tmp_path / "small")
    (package.folder / "engines").rmdir()
    (package.folder / "engines").write_bytes(b"in the way")
    code, lines, stderr = run(package.folder, "--for", "sm89")
    assert (code, lines) == (2, [])
    assert "can't add an engine to" in stderr
    assert "building" not in stderr


def test_an_engine_is_added_where_temporary_files_cannot_be_written(folder, run, tmp_path, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
        code, _, stderr = run(folder, "--for", "sm89")
    assert code == 0, stderr
    assert engines_of(folder) == [("sm89", "fp16")]


def test_a_graph_that_cannot_be_parsed_is_one_line_and_1_with_all_errors(tmp_path, run):
    package = package_of(tmp_path / "small", graphs=GRAPHS | {"fp16": small_graph(unknown_operators=2)})
    code, _, stderr = run(package.folder, "--for", "sm89")
    assert code == 1
    assert "'strange0'" in stderr
    assert "'strange1'" in stderr


@pytest.mark.parametrize("at", ["building", "writing the plan", "writing the manifest"])
def test_whatever_fails_the_package_stays_as_it_was(at, tmp_path, monkeypatch):
    package = package_of(tmp_path / "small")
    manifest = (package.folder / "manifest.json").read_bytes()
    write, fail_at = package_engines.write_whole, {"writing the plan": ".plan", "writing the manifest": ".json"}

    def writing(path, data):
        if path.suffix == fail_at.get(at):
            raise OSError(28, "No space left on device")
        write(path, data)

    def failing(*_, **__):
        raise BackendError("the builder failed")

    monkeypatch.setattr(package_engines, "write_whole", writing)
    if at == "building":
        monkeypatch.setattr(package_engines, "build_engine", failing)
    with pytest.raises(Exception, match=r"the builder failed|can't add an engine to .*No space left"):
        package_engines.add_engine(
            package.folder,
            capability="sm89",
            precision="auto",
            max_batch=4,
            show_progress=lambda: nullcontext(lambda *_: None),
            on_wait=lambda: None,
        )
    assert (package.folder / "manifest.json").read_bytes() == manifest
    assert not list(package.folder.rglob("*.partial"))


COMMAND = """
import fuseline.command
sys.argv = ["fuseline", "engine", sys.argv[1], "--for", sys.argv[2]]
sys.stderr = sys.stdout
try:
    fuseline.command.main()
finally:
    sys.stdout.flush()
"""


def test_two_that_add_to_one_package_lose_neither_engine(folder):
    with file_lock(folder, lambda: pytest.fail("nobody else holds it")):
        children = [ChildProcess(COMMAND, folder, capability) for capability in ("sm89", "sm120")]
        for child in children:
            assert "another process is writing to" in child.hear()
    for child in children:
        with child:
            while "built in" not in child.hear():
                pass
    assert sorted(engines_of(folder)) == [("sm120", "fp16"), ("sm89", "fp16")]


def test_the_engines_of_a_real_export_are_of_its_own_graphs(tiny_package, tmp_path, run):
    folder = copytree(tiny_package, tmp_path / "tiny")
    for precision in ("fp16", "fp32"):
        code, lines, stderr = run(folder, "--for", "sm89", "--precision", precision)
        assert code == 0, stderr
        assert f"layers: 21 {precision}" in lines[0]
    digests = {hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.glob("*.onnx")}
    built = [a.details["graph_sha256"] for a in load_package(folder).manifest.artifacts if a.format == "tensorrt_rtx"]
    assert set(built) == digests
