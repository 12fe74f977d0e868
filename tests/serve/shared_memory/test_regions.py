"""Regions of POSIX shared memory, in this process."""

import os
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from fuseline.serve.errors import RegionExistsError, RequestError, SharedMemoryUnavailableError, UnknownRegionError
from fuseline.serve.shared_memory import regions as regions_module
from fuseline.serve.shared_memory.region import UnreachableRegion
from fuseline.serve.shared_memory.regions import SharedMemoryRegions
from fuseline.serve.shared_memory.registration import CudaRegistration, SystemRegistration
from fuseline.serve.shared_memory.system_region import open_system_region, reopen_system_region
from tests.serve.shared_memory.objects import open_files, shared_object, unused_path

CONTENT = bytes(range(256)) * 64
"""16 KiB, four pages."""
HUGE = 2**64 - 1


@pytest.fixture
def regions() -> SharedMemoryRegions:
    return SharedMemoryRegions()


@pytest.fixture
def path() -> Iterator[Path]:
    with shared_object(CONTENT) as path:
        yield path


def read(regions: SharedMemoryRegions, name: str, offset: int, byte_size: int) -> bytes:
    out = bytearray(byte_size)
    regions.read(name, offset, byte_size, out)
    return bytes(out)


@pytest.mark.parametrize("slash", ["", "/"])
def test_a_region_is_read_and_written_from_its_offset_on(regions: SharedMemoryRegions, path: Path, slash: str) -> None:
    key = slash + path.name
    regions.register("mine", key, 5000, 300)
    assert regions.status("mine") == [SystemRegistration("mine", key, 5000, 300)]
    assert read(regions, "mine", 0, 300) == CONTENT[5000:5300]
    assert read(regions, "mine", 299, 1) == CONTENT[5299:5300]
    rows = np.empty((2, 3, 5), np.uint8)
    regions.read("mine", 7, 30, rows)
    assert rows.tobytes() == CONTENT[5007:5037]
    part = regions.writable("mine", 290, 10)
    assert part.byte_size == 10
    assert path.read_bytes() == CONTENT
    part.write(np.full(2, 1.0, "<f4").data)
    assert path.read_bytes() == CONTENT[:5290] + np.full(2, 1.0, "<f4").tobytes() + CONTENT[5298:]


def test_regions_may_overlap_and_share_an_object(regions: SharedMemoryRegions, path: Path) -> None:
    regions.register("one", path.name, 0, 100)
    regions.register("two", path.name, 50, 100)
    regions.writable("one", 50, 4).write(b"text")
    assert read(regions, "two", 0, 4) == b"text"


@pytest.mark.parametrize(
    ("offset", "byte_size"),
    [(0, 101), (100, 1), (99, 2), (-1, 2), (-1, 102), (0, 0), (0, -1), (2, -1), (HUGE, 1), (1, HUGE), (2**63, 2**63)],
)
def test_what_is_not_within_the_region_is_neither_read_nor_written(
    regions: SharedMemoryRegions, path: Path, offset: int, byte_size: int
) -> None:
    """Not even where the object goes on beyond it."""
    regions.register("mine", path.name, 100, 100)
    for use in (
        lambda: regions.read("mine", offset, byte_size, bytearray()),
        lambda: regions.writable("mine", offset, byte_size),
    ):
        with pytest.raises(RequestError, match=r"shared_memory_offset .* not within .*'mine', which has 100 bytes"):
            use()


def test_what_is_larger_than_its_part_is_not_written(regions: SharedMemoryRegions, path: Path) -> None:
    regions.register("mine", path.name, 0, 100)
    part = regions.writable("mine", 0, 10)
    with pytest.raises(RequestError, match="11 bytes doesn't fit into 10 bytes"):
        part.write(bytes(11))
    assert path.read_bytes() == CONTENT


@pytest.mark.parametrize(
    "key",
    [
        "",
        "/",
        ".",
        "..",
        "/..",
        "../shm/x",
        "/../../etc/passwd",
        "//x",
        "x/",
        "folder/x",
        "/dev/shm/x",
        "x\0y",
        "x" * 256,
        "é" * 128,
        "\ud800",
        "sem.x",
        "/sem.x",
    ],
)
def test_a_key_that_names_no_object_is_refused(regions: SharedMemoryRegions, key: str) -> None:
    with pytest.raises(RequestError, match="the key ") as refused:
        regions.register("mine", key, 0, 1)
    assert len(str(refused.value)) < 400
    assert not regions.status("")


@pytest.mark.parametrize("name", ["", "x" * 1025, "é" * 513, "\ud800"])
def test_a_name_is_some_unicode_text_of_bounded_length(regions: SharedMemoryRegions, path: Path, name: str) -> None:
    with pytest.raises(RequestError, match="can't be named .*; a name is 1 to 1024 bytes") as refused:
        regions.register(name, path.name, 0, 1)
    assert len(str(refused.value)) < 400


@pytest.mark.parametrize(
    ("offset", "byte_size", "message"),
    [
        (0, 0, "at least one"),
        (0, -1, "at least one"),
        (0, len(CONTENT) + 1, "are not within the shared memory object"),
        (len(CONTENT), 1, "are not within the shared memory object"),
        (-1, 10, "are not within the shared memory object"),
        (HUGE, 1, "are not within the shared memory object"),
        (1, HUGE, "are not within the shared memory object"),
        (2**63, 2**63, "are not within the shared memory object"),
    ],
)
def test_a_region_that_its_object_does_not_hold_is_refused(
    regions: SharedMemoryRegions, path: Path, offset: int, byte_size: int, message: str
) -> None:
    with pytest.raises(RequestError, match=message):
        regions.register("mine", path.name, offset, byte_size)
    assert open_files(path) == 0


def test_an_object_that_is_not_there_is_refused(regions: SharedMemoryRegions) -> None:
    with pytest.raises(RequestError, match="there is no shared memory object"):
        regions.register("mine", unused_path().name, 0, 1)


def link(path: Path) -> None:
    path.symlink_to("/etc/hosts")


def link_within(path: Path) -> None:
    target = path.with_name(path.name + "-target")
    path.symlink_to(target.name)


def listen(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))


@pytest.mark.parametrize("make", [link, link_within, Path.mkdir, os.mkfifo, listen])
def test_what_is_no_regular_file_is_refused_at_once(regions: SharedMemoryRegions, make: Callable[[Path], None]) -> None:
    path = unused_path()
    make(path)
    try:
        with pytest.raises(RequestError, match="is no shared memory object but a link, folder, pipe"):
            regions.register("mine", path.name, 0, 1)
        assert open_files(path) == 0
    finally:
        if stat.S_ISDIR(path.lstat().st_mode):
            path.rmdir()
        else:
            path.unlink()


as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can make another user's object")


@as_root
@pytest.mark.parametrize("mode", [0o600, 0o660, 0o664, 0o662, 0o604])
def test_an_object_of_another_user_is_refused_to_root_too(regions: SharedMemoryRegions, path: Path, mode: int) -> None:
    os.chown(path, 12345, os.getegid())
    path.chmod(mode)
    with pytest.raises(RequestError, match=r"another user's .*; a server must not lend its rights .*chmod o\+rw"):
        regions.register("mine", path.name, 0, 1)
    assert open_files(path) == 0


@as_root
def test_an_object_of_another_user_that_is_open_to_all_is_taken(regions: SharedMemoryRegions, path: Path) -> None:
    os.chown(path, 12345, 12345)
    path.chmod(0o666)
    regions.register("mine", path.name, 0, 4)
    assert read(regions, "mine", 0, 4) == CONTENT[:4]


@pytest.mark.parametrize(("mode", "refused"), [(0o600, True), (0o606, False), (0o666, False)])
def test_a_server_of_another_user_takes_only_what_is_open_to_all(
    regions: SharedMemoryRegions, path: Path, monkeypatch: pytest.MonkeyPatch, mode: int, refused: bool
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    path.chmod(mode)
    if not refused:
        regions.register("mine", path.name, 0, 1)
        return
    with pytest.raises(RequestError, match=r"another user's than the server's \(user 12345\)"):
        regions.register("mine", path.name, 0, 1)
    assert open_files(path) == 0


def test_an_object_that_the_kernel_does_not_let_the_server_open_is_refused_likewise(
    regions: SharedMemoryRegions, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(*_: object) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", denied)
    with pytest.raises(RequestError, match="not writable; a server must not lend its rights"):
        regions.register("mine", path.name, 0, 1)


LEASE = """
import fcntl, os, signal, sys
signal.signal(signal.SIGIO, signal.SIG_IGN)  # by which the kernel tells that someone wants the file
fcntl.fcntl(os.open(sys.argv[1], os.O_RDWR), fcntl.F_SETLEASE, fcntl.F_WRLCK)
print("leased", flush=True)
sys.stdin.read()
"""


def test_an_object_that_its_owner_has_leased_is_refused_at_once(regions: SharedMemoryRegions, path: Path) -> None:
    """Others wait 45 s for such a file (man 2 fcntl, Leases) unless they say that they won't."""
    command = [sys.executable, "-c", LEASE, path]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == "leased\n"
        begun = time.monotonic()
        with pytest.raises(RequestError, match="can't be opened"):
            regions.register("mine", path.name, 0, 1)
        assert time.monotonic() - begun < 10
        owner.communicate()


def test_a_taken_name_is_refused_and_keeps_its_region(regions: SharedMemoryRegions, path: Path) -> None:
    regions.register("mine", path.name, 0, 10)
    with pytest.raises(RegionExistsError, match="'mine' is registered already; unregister it first"):
        regions.register("mine", path.name, 5, 10)
    regions.add(UnreachableRegion(CudaRegistration("gpu", bytes(64), 0, 1), "no reason"))
    with pytest.raises(RegionExistsError, match="'gpu'"):
        regions.register("gpu", path.name, 5, 10)
    assert regions.status("mine") == [SystemRegistration("mine", path.name, 0, 10)]
    assert open_files(path) == 1


@pytest.mark.parametrize(("most", "files"), [(3, 1024), (3, -1), (1024, 12)])
def test_the_number_of_regions_is_bounded(path: Path, monkeypatch: pytest.MonkeyPatch, most: int, files: int) -> None:
    monkeypatch.setattr(regions_module, "MOST_REGIONS", most)
    monkeypatch.setattr(regions_module.resource, "getrlimit", lambda _: (files, files))
    regions = SharedMemoryRegions()
    for number in range(3):
        regions.register(str(number), path.name, 0, 1)
    with pytest.raises(RequestError, match="3 shared memory regions are registered, the most; unregister some"):
        regions.register("more", path.name, 0, 1)
    regions.unregister("1")
    regions.register("more", path.name, 0, 1)
    assert open_files(path) == 3


def test_unregistering_closes_and_knows_kinds_and_no_errors(regions: SharedMemoryRegions, path: Path) -> None:
    for name in ("one", "two", "three"):
        regions.register(name, path.name, 0, 1)
    gpu = UnreachableRegion(CudaRegistration("gpu", bytes(64), 0, 1), "no reason")
    regions.add(gpu)
    regions.unregister("nobody")
    regions.unregister("one", "cuda")
    assert open_files(path) == 3
    regions.unregister("one")
    assert open_files(path) == 2
    with pytest.raises(UnknownRegionError, match="'one' is not registered"):
        read(regions, "one", 0, 1)
    regions.unregister("gpu")
    assert regions.status("", "cuda") == [gpu.registration]
    regions.unregister("")
    assert (open_files(path), regions.status("")) == (0, [])
    assert regions.status("gpu", "cuda") == [gpu.registration]
    regions.unregister("", "cuda")
    assert regions.status("", "cuda") == []


def test_the_status_of_an_unknown_region_is_an_error_that_says_which_kind_it_is(
    regions: SharedMemoryRegions, path: Path
) -> None:
    regions.register("mine", path.name, 0, 1)
    with pytest.raises(UnknownRegionError, match="no system shared memory region 'other' is registered$"):
        regions.status("other")
    with pytest.raises(UnknownRegionError, match="no cuda shared memory region 'mine' .*; it is system shared memory"):
        regions.status("mine", "cuda")


def test_a_region_is_the_object_that_was_registered_whatever_has_its_name_now(
    regions: SharedMemoryRegions, path: Path
) -> None:
    regions.register("mine", path.name, 0, 4)
    path.unlink()
    assert read(regions, "mine", 0, 4) == CONTENT[:4]
    path.write_bytes(b"another one")
    assert read(regions, "mine", 0, 4) == CONTENT[:4]
    regions.unregister("mine")
    regions.register("mine", path.name, 0, 4)
    assert read(regions, "mine", 0, 4) == b"anot"


@pytest.mark.parametrize("size", [0, 150, 199])
def test_a_region_that_shrank_is_an_error_of_the_request_that_uses_it(
    regions: SharedMemoryRegions, path: Path, size: int
) -> None:
    regions.register("mine", path.name, 100, 100)
    held = regions.writable("mine", 0, 100)
    os.truncate(path, size)
    for use in (
        lambda: read(regions, "mine", 0, 100),
        lambda: regions.writable("mine", 0, 100),
        lambda: held.write(bytes(100)),
    ):
        with pytest.raises(RequestError, match=f"'mine' has shrunk: .* has {size} bytes now, the region ends at 200"):
            use()
    # Nothing has made it larger, or changed what is left.
    assert path.read_bytes() == CONTENT[:size]
    os.truncate(path, 200)
    held.write(b"again")
    assert read(regions, "mine", 0, 5) == b"again"


def test_what_is_left_of_a_region_that_shrank_may_be_used(regions: SharedMemoryRegions, path: Path) -> None:
    regions.register("mine", path.name, 0, 100)
    os.truncate(path, 50)
    assert read(regions, "mine", 0, 50) == CONTENT[:50]
    regions.writable("mine", 46, 4).write(b"last")
    assert path.read_bytes() == CONTENT[:46] + b"last"


def test_a_part_is_written_although_its_region_was_unregistered_meanwhile(
    regions: SharedMemoryRegions, path: Path
) -> None:
    regions.register("mine", path.name, 0, 100)
    part = regions.writable("mine", 0, 4)
    regions.unregister("mine")
    regions.register("mine", path.name, 100, 100)
    part.write(b"late")
    assert path.read_bytes()[:4] == b"late"
    assert open_files(path) == 2
    del part
    assert open_files(path) == 1


def test_a_full_dev_shm_is_an_error_of_the_request(
    regions: SharedMemoryRegions, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    regions.register("mine", path.name, 0, 100)
    monkeypatch.setattr(os, "pwritev", full)
    with pytest.raises(RequestError, match=r"'mine' can't be copied \(No space left on device\)"):
        regions.writable("mine", 0, 4).write(b"text")


def test_copies_that_the_kernel_cuts_short_go_on(
    regions: SharedMemoryRegions, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    preadv, pwritev = os.preadv, os.pwritev
    monkeypatch.setattr(os, "preadv", lambda file, buffers, at: preadv(file, [buffers[0][:7]], at))
    monkeypatch.setattr(os, "pwritev", lambda file, buffers, at: pwritev(file, [buffers[0][:7]], at))
    regions.register("mine", path.name, 10, 100)
    assert read(regions, "mine", 5, 50) == CONTENT[15:65]
    regions.writable("mine", 0, 30).write(bytes(30))
    assert path.read_bytes() == CONTENT[:10] + bytes(30) + CONTENT[40:]


def test_a_server_that_shares_no_memory_says_why_to_every_use(path: Path) -> None:
    regions = SharedMemoryRegions("it is off")
    uses: list[Callable[[], object]] = [
        lambda: regions.register("mine", path.name, 0, 1),
        lambda: regions.unregister(""),
        lambda: regions.status(""),
        lambda: regions.read("mine", 0, 1, bytearray(1)),
        lambda: regions.writable("mine", 0, 1),
    ]
    for use in uses:
        with pytest.raises(SharedMemoryUnavailableError, match="^it is off$"):
            use()


def test_another_process_of_the_server_opens_the_same_object_or_none(path: Path) -> None:
    registration = SystemRegistration("mine", path.name, 0, 100)
    region = open_system_region(registration)
    link = Path(f"/proc/self/fd/{region.file}")
    path.unlink()
    path.write_bytes(CONTENT)
    same = reopen_system_region(registration, link, region.identity)
    same.write(0, memoryview(b"same"))
    out = bytearray(4)
    region.read(0, memoryview(out))
    assert out == b"same"
    with pytest.raises(RequestError, match="no longer open"):
        reopen_system_region(registration, path, region.identity)
    file = region.file
    del region, same
    with pytest.raises(RequestError, match="can't be opened"):
        reopen_system_region(registration, Path(f"/proc/self/fd/{file}"), (0, 0))


def test_an_unreachable_region_says_why(regions: SharedMemoryRegions) -> None:
    regions.add(UnreachableRegion(SystemRegistration("mine", "x", 0, 100), "for a reason"))
    for use in (lambda: read(regions, "mine", 0, 1), lambda: regions.writable("mine", 0, 1)):
        with pytest.raises(
            RequestError, match="'mine' has vanished: for a reason; unregister it, and register it again"
        ):
            use()
