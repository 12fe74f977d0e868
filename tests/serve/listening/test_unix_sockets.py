"""gRPC on Unix sockets: `fuseline serve --listen unix:PATH`."""

import asyncio
import os
import re
import signal
import socket
import stat
import uuid
from pathlib import Path

import pytest

from fuseline.serve.client import AsyncClient, Client
from fuseline.serve.errors import InputError
from fuseline.serve.listening.unix_sockets import prepare_unix_address
from fuseline.serve.server import Server
from fuseline.serve.settings import settings_from_flags
from tests.commands import Run
from tests.fakes.colours import encoded, plain
from tests.serve.conftest import StartServer, settings
from tests.serve.processes import FAST, server_process

SERVE = tuple(str(argument) for argument in FAST[2:])
"""`FAST` without its port, which would be listened on too."""


def label_of(address: str) -> str:
    with Client(address) as client:
        return client.classify(plain("green")).results[0].predictions[0].label


def test_clients_and_commands_reach_a_server_by_its_unix_sockets_alone(
    package: Path, folder: Path, run_fuseline: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = folder / "green.png"
    image.write_bytes(encoded(plain("green"), "PNG"))
    file, abstract = f"unix:{folder}/its.sock", f"unix-abstract:fuseline-{uuid.uuid4()}"
    with server_process(package, *SERVE, "--listen", file, "--listen", abstract) as server:
        assert f"gRPC on {file} and {abstract}\n" in server.announcement
        for address in (file, abstract, f"unix://{folder}/its.sock"):
            assert label_of(address) == "green"
            code, out, err = run_fuseline("classify", image, "--address", address, "--top-k", 1)
            assert (code, err) == (0, "")
            assert "green" in out
            assert run_fuseline("health", "--address", address)[:2] == (0, "SERVING\n")
        monkeypatch.setenv("FUSELINE_LISTEN", f"{file} {abstract}")
        assert run_fuseline("health")[:2] == (0, "SERVING\n")
        mode = (folder / "its.sock").stat().st_mode
        umask = os.umask(0)
        os.umask(umask)
        assert stat.S_IMODE(mode) == 0o777 & ~umask
        server.process.send_signal(signal.SIGTERM)
        code, stderr = server.end()
    assert code == 0, stderr
    assert os.listdir(folder) == ["green.png"]  # noqa: PTH208


async def test_tcp_and_unix_addresses_are_served_side_by_side(start_server: StartServer, folder: Path) -> None:
    name = f"unix:{folder}/with%20space%C3%A9.sock"
    served = await start_server(listen=("127.0.0.1:0", name, "localhost:0"))
    tcp, unix, second_tcp = served.server.addresses
    assert unix == name
    assert (folder / "with spaceé.sock").is_socket()
    assert served.server.port == int(tcp.rpartition(":")[2])
    for address in (tcp, unix, second_tcp):
        async with AsyncClient(address) as client:
            assert (await client.classify(plain("blue"))).results[0].predictions[0].label == "blue"


async def test_a_relative_path_is_one_of_the_working_folder(
    start_server: StartServer, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    await start_server(listen=("127.0.0.1:0", "unix:its.sock"))
    assert await asyncio.to_thread(label_of, f"unix:{folder}/its.sock") == "green"


def test_a_port_that_is_given_beside_listen_counts_too(package: Path, folder: Path) -> None:
    with server_process(package, *FAST, "--listen", f"unix:{folder}/its.sock") as server:
        both = re.search(r"gRPC on (127\.0\.0\.1:\d+) and (unix:\S+)$", server.announcement, re.MULTILINE)
        assert both is not None
        assert [label_of(address) for address in both.groups()] == ["green", "green"]


async def test_the_file_of_a_server_that_died_is_replaced(start_server: StartServer, folder: Path) -> None:
    path = folder / "its.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
        dead.listen()
    assert path.is_socket()
    await start_server(listen=("127.0.0.1:0", f"unix:{path}"))
    assert await asyncio.to_thread(label_of, f"unix:{path}") == "green"


@pytest.mark.parametrize("form", ["unix:{folder}/its.sock", "unix-abstract:{folder}"])
async def test_an_address_that_a_server_listens_on_is_refused_and_stays_its_own(
    start_server: StartServer, package: Path, folder: Path, form: str
) -> None:
    address = form.format(folder=folder)
    served = await start_server(listen=("127.0.0.1:0", address))
    second = Server.for_packages([package], settings(listen=(f"unix:{folder}/first.sock", address)))
    in_use = "a process listens there already" if "its.sock" in address else "Address already in use"
    with pytest.raises(InputError, match=rf"can't listen on {re.escape(address)} \({in_use}"):
        await second.start()
    assert not (folder / "first.sock").exists()
    assert await asyncio.to_thread(label_of, served.server.addresses[1]) == "green"


def test_a_busy_server_whose_queue_of_connections_is_full_is_not_taken_for_dead(folder: Path) -> None:
    path = folder / "its.sock"
    with socket.socket(socket.AF_UNIX) as busy, socket.socket(socket.AF_UNIX) as waiting:
        busy.bind(str(path))
        busy.listen(0)
        waiting.connect(str(path))
        with pytest.raises(InputError, match="listens there already"):
            prepare_unix_address(f"unix:{path}")
    assert path.is_socket()


@pytest.mark.parametrize("kind", ["file", "folder", "link", "pipe", "datagram socket"])
def test_what_is_no_servers_socket_is_never_removed(folder: Path, kind: str) -> None:
    path = folder / "its.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as datagrams:
        match kind:
            case "file":
                path.write_bytes(b"mine")
            case "folder":
                path.mkdir()
            case "link":
                path.symlink_to("nowhere")
            case "pipe":
                os.mkfifo(path)
            case _:
                datagrams.bind(str(path))
        before = path.lstat()
        with pytest.raises(InputError, match=r"socket.*; remove it, or choose another path\)"):
            prepare_unix_address(f"unix:{path}")
        assert path.lstat() == before


def test_what_the_system_refuses_is_told(folder: Path) -> None:
    with pytest.raises(InputError, match=rf"there is no folder {folder}/none; make it"):
        prepare_unix_address(f"unix:{folder}/none/its.sock")
    (folder / "file").touch()
    with pytest.raises(InputError, match="Not a directory"):
        prepare_unix_address(f"unix:{folder}/file/its.sock")


@pytest.mark.skipif(os.geteuid() != 0, reason="root alone can become a user without rights")
def test_a_folder_without_the_right_to_write_is_told(folder: Path) -> None:
    os.seteuid(65534)
    try:
        with pytest.raises(InputError, match=rf"Permission denied: .* in {folder}\)"):
            prepare_unix_address(f"unix:{folder}/its.sock")
    finally:
        os.seteuid(0)


@pytest.mark.parametrize(
    ("listen", "message"),
    [
        ("unix:", "unix: is followed by no path"),
        ("unix-abstract:", "is followed by no name"),
        ("unix:/" + "a" * 107, "it has 108 bytes; .* at most 107"),
        ("unix-abstract:" + "é" * 54, "it has 108 bytes; .* at most 107"),
        ("unix://host/run/its.sock", "the host must be empty: write unix:PATH"),
        ("unix:/run/a?b", r"\? is written %3F"),
        ("unix:/run/a%00b", "zero byte"),
        *(
            (wrong, "expected HOST:PORT")
            for wrong in ("", ":1", "host", "::1", "::1:1", "a:65536", "tcp://a:1", "a b:1")
        ),
    ],
)
def test_an_address_of_no_known_form_is_refused(listen: str, message: str) -> None:
    with pytest.raises(InputError, match=f"--listen was given .*: .*{message}"):
        settings_from_flags(listen=["127.0.0.1:0", listen])


@pytest.mark.parametrize("listen", ["[::1]:0", "[fe80::1%eth0]:1", "a-b.example_1:65535", "unix:" + "é" * 53])
def test_other_addresses_are_taken(listen: str) -> None:
    assert settings_from_flags(listen=[listen]).grpc_addresses == (listen,)


async def test_a_server_that_fails_to_start_leaves_no_file(folder: Path) -> None:
    server = Server.for_packages([folder / "no package"], settings(listen=(f"unix:{folder}/its.sock",)))
    with pytest.raises(InputError):
        await server.start()
    assert os.listdir(folder) == []  # noqa: PTH208
