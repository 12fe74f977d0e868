"""The cache with real engines, real processes and folders that can't be written to."""

import hashlib
import logging
import subprocess

import pytest

from fuseline.serve.backends.engine import cache as engine_cache
from fuseline.serve.backends.engine.builder import EngineBuild, build_engine
from fuseline.serve.backends.engine.cache import EngineCache, cached_engine, check_engine_cache, write_whole
from fuseline.serve.backends.engine.key import EngineDetails
from fuseline.serve.backends.engine.precision import AchievedPrecision
from fuseline.serve.errors import BackendUnavailableError, InputError
from tests.serve.backends.engine_packages import GRAPHS, details_of
from tests.serve.child_process import ChildProcess

DETAILS = EngineDetails.model_validate(details_of())
FILE = f"{DETAILS.key}.plan"


class FakeBuilder:
    """Builds and loads what is easy to tell apart."""

    def __init__(self, timing_cache=None):
        self.timing_caches = []
        self.timing_cache = timing_cache
        self.refused = set()

    def build(self, timing_cache):
        self.timing_caches.append(timing_cache)
        plan = f"plan {len(self.timing_caches)}".encode()
        achieved = AchievedPrecision({"fp16": 1}, {"fp16": 1}, {"fp16": 1})
        return EngineBuild(plan, DETAILS, "fp16", achieved, {}, 0.5, self.timing_cache)

    def load(self, plan):
        if plan in self.refused:
            raise BackendUnavailableError("refused")
        return f"engine of {plan.decode()}"


def get(cache, builder):
    return cached_engine(cache, DETAILS, build=builder.build, load=builder.load)


def test_an_engine_is_built_once_and_kept_with_its_sha256(tmp_path):
    cache, builder = EngineCache(tmp_path / "engines"), FakeBuilder()
    assert get(cache, builder) == get(cache, builder) == "engine of plan 1"
    assert builder.timing_caches == [None]
    checked = subprocess.run(
        ["sha256sum", "--check", f"{FILE}.sha256"], cwd=cache.folder, capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stderr


@pytest.mark.parametrize("damage", ["plan", "sum", "no sum", "binary sum"])
def test_a_damaged_engine_is_never_loaded_but_built_anew(damage, tmp_path, caplog):
    cache, builder = EngineCache(tmp_path), FakeBuilder()
    get(cache, builder)
    if damage == "plan":
        (tmp_path / FILE).write_bytes(b"evil")
    elif damage == "no sum":
        (tmp_path / f"{FILE}.sha256").unlink()
    else:
        (tmp_path / f"{FILE}.sha256").write_bytes(b"\xff" * 64 if damage == "binary sum" else b"0" * 64)
    assert get(cache, builder) == "engine of plan 2"
    assert get(cache, builder) == "engine of plan 2"
    assert damage == "no sum" or "is not used" in caplog.text


def test_an_engine_that_the_library_refuses_is_built_anew(tmp_path, caplog):
    cache, builder = EngineCache(tmp_path), FakeBuilder()
    get(cache, builder)
    builder.refused.add(b"plan 1")
    assert get(cache, builder) == "engine of plan 2"
    assert f"{FILE} is of no use here and is built again: refused" in caplog.text


def test_an_engine_that_is_refused_fresh_from_the_builder_is_not_kept(tmp_path):
    cache, builder = EngineCache(tmp_path), FakeBuilder()
    builder.refused.add(b"plan 1")
    with pytest.raises(BackendUnavailableError, match="refused"):
        get(cache, builder)
    assert not list(tmp_path.glob("*.plan"))
    assert get(cache, builder) == "engine of plan 2", "the lock is free again"


def test_a_timing_cache_is_kept_beside_and_given_to_the_next_build(tmp_path):
    cache, builder = EngineCache(tmp_path), FakeBuilder(timing_cache=b"measured")
    get(cache, builder)
    (tmp_path / FILE).unlink()
    get(cache, builder)
    assert builder.timing_caches == [None, b"measured"]
    assert (tmp_path / "timing-tensorrt-11.4.0-sm89.cache").read_bytes() == b"measured"


def unwritable(tmp_path, kind):
    """A folder in which nobody, not even root, can write."""
    if kind == "a file is in its place":
        (tmp_path / "engines").write_bytes(b"")
        return tmp_path / "engines"
    return next(path for path in map(type(tmp_path), ("/proc/self", "/sys")) if path.is_dir()) / "engines"


@pytest.mark.parametrize("kind", ["read-only file system", "a file is in its place"])
def test_a_cache_that_cannot_be_written_to_costs_a_build_and_says_so(kind, tmp_path, caplog):
    cache, builder = EngineCache(unwritable(tmp_path, kind)), FakeBuilder()
    with caplog.at_level(logging.INFO):
        assert get(cache, builder) == "engine of plan 1"
    assert f"built engine {DETAILS.key} in 0.5 s, in memory only, so the next start builds it again" in caplog.text
    assert "can't be written" in caplog.text


def test_a_read_only_cache_that_has_the_engine_is_read(tmp_path, monkeypatch):
    cache, builder = EngineCache(tmp_path), FakeBuilder()
    get(cache, builder)

    def refuse(*_):
        raise PermissionError("read-only")

    for writing in ("write_whole", "file_lock"):
        monkeypatch.setattr(engine_cache, writing, refuse)
    assert get(cache, builder) == "engine of plan 1"


def test_a_write_that_fails_leaves_the_old_bytes_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "a.plan"
    write_whole(path, b"old")

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(engine_cache.os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_whole(path, b"new")
    assert [p.name for p in tmp_path.iterdir()] == ["a.plan"]
    assert path.read_bytes() == b"old"
    assert not EngineCache(tmp_path).write("a.plan", b"new")


SERVER = """
import logging
from pathlib import Path
from fuseline.serve.backends.engine.builder import build_engine
from fuseline.serve.backends.engine.cache import EngineCache, cached_engine
from fuseline.serve.backends.engine.key import EngineDetails

class Said(logging.Handler):
    def emit(self, record):
        if "waiting" in record.getMessage():
            say(record.getMessage())

logging.getLogger("fuseline.serve").addHandler(Said())
logging.getLogger("fuseline.serve").setLevel(logging.INFO)
graph = Path(sys.argv[2]).read_bytes()
held = len(sys.argv) > 4

def on_progress(phase, share):
    global held
    if held and share > 0.3:
        held = False
        say("in the middle of it")
        hear()

def build(timing_cache):
    say("building")
    return build_engine(graph, precision="fp16", capability="sm89", max_batch=4, on_progress=on_progress)

bound_to = EngineDetails.model_validate_json(sys.argv[3])
plan = cached_engine(EngineCache(Path(sys.argv[1])), bound_to, build=build, load=bytes)
say(f"{len(plan)} bytes")
"""


def test_a_named_cache_that_can_keep_nothing_and_holds_no_engine_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"--engine-cache .*file/engines holds no engine and can't keep one \(.+\)"):
        check_engine_cache(tmp_path / "file" / "engines")


def test_a_named_cache_that_is_not_there_is_made_and_left_empty(tmp_path):
    check_engine_cache(tmp_path / "a" / "engines")
    assert list((tmp_path / "a" / "engines").iterdir()) == []


@pytest.fixture(scope="module")
def build():
    pytest.importorskip("tensorrt_rtx", reason="pip install 'fuseline[rtx]' to build engines in tests")
    return build_engine(GRAPHS["fp16"], precision="fp16", capability="sm89", max_batch=4)


@pytest.mark.parametrize("first_ends", ["well", "killed"])
def test_servers_that_start_together_build_an_engine_once_and_a_builder_that_dies_holds_no_one_up(
    first_ends, tmp_path, build
):
    (tmp_path / "model.onnx").write_bytes(GRAPHS["fp16"])
    arguments = (tmp_path / "cache", tmp_path / "model.onnx", build.bound_to.model_dump_json())
    with ChildProcess(SERVER, *arguments, "held") as first, ChildProcess(SERVER, *arguments, start=False) as second:
        assert first.hear() == "building"
        assert first.hear() == "in the middle of it"
        second.start()
        assert second.hear() == f"another process is building engine {build.key}; waiting for it"
        if first_ends == "well":
            first.say("go on")
            said = first.hear()
            assert said.endswith(" bytes")
            assert second.hear() == said, "the second loads what the first built"
        else:
            first.kill()
            assert second.hear() == "building"
            assert second.hear().endswith(" bytes")
    plan = (tmp_path / f"cache/{build.key}.plan").read_bytes()
    assert hashlib.sha256(plan).hexdigest() in (tmp_path / f"cache/{build.key}.plan.sha256").read_text()
    assert not list((tmp_path / "cache").glob("*.partial"))
