"""`fuseline serve --workers N`: starts a backend process and N workers, restarts those that die, drains them in order.

The supervisor itself holds the ports, carries what comes on Unix sockets, and computes nothing.
"""

import asyncio
import logging
import os
import shutil
import signal
import ssl
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fuseline.serve.errors import BackendError, InputError
from fuseline.serve.process.server_log import LogSettings, end_process, server_log
from fuseline.serve.process.stop_signals import stop_signals
from fuseline.serve.services.request_ids import made_id
from fuseline.serve.settings import Settings
from fuseline.serve.tls.certificates import Certificates, copied_in_memory
from fuseline.serve.tracing.tracing import BACKEND
from fuseline.serve.workers.backend_door import backend_door
from fuseline.serve.workers.catalogue import ServedModel
from fuseline.serve.workers.child_process import ProcessConfig
from fuseline.serve.workers.control_relay import ControlRelay
from fuseline.serve.workers.feed_relay import FeedRelay
from fuseline.serve.workers.process_watch import ProcessWatch
from fuseline.serve.workers.region_authority import RegionAuthority
from fuseline.serve.workers.shared_addresses import SharedAddresses, new_socket_folder
from fuseline.serve.workers.supervised import SupervisedProcess, start_process
from fuseline.serve.workers.totals import Totals

if TYPE_CHECKING:
    from fuseline.serve.workers.http_front import HttpFront

_EXIT_TIMEOUT_S = 6.0
"""Seconds beyond the drain's own, for the delivery of the last answers and the interpreter's end."""
_KILL_AGAIN_S = 0.1
_MAX_FAILED_STARTS = 5
_LONG_LIFE_S = 10.0
_MAX_PAUSE_S = 5.0

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Commands:
    """Arguments of `python` that start each kind of process."""

    backend: tuple[str, ...] = ("-m", "fuseline.serve.workers.backend_process")
    worker: tuple[str, ...] = ("-m", "fuseline.serve.workers.worker_process")


class Supervisor:
    """Serves model packages from several processes. `start`, then `drain`, each once, on one event loop."""

    def __init__(self, folders: Sequence[Path], settings: Settings, commands: Commands) -> None:
        self.repository: tuple[ServedModel, ...] = ()
        """Served models, known once `start` has returned."""
        self.http_port: int | None = None
        self._folders = tuple(folders)
        self._settings = settings
        self._commands = commands
        self._http: HttpFront | None = None
        self._certificates: Certificates | None = None
        self._watching_files: asyncio.Task[None] | None = None
        self._door, self._inner_door = backend_door()
        self._lifeline, self._lifeline_end = os.pipe()
        self._socket_folder: Path | None = None
        self._shared = SharedAddresses(self._socket_folder, self._ready_workers)
        self._processes: dict[str, SupervisedProcess] = {}
        self.totals = Totals(self._processes)
        """Sum of what all processes have counted."""
        self._regions = RegionAuthority(settings.why_no_shared_memory)
        self._watch = ProcessWatch(
            lambda: tuple(self._processes.values()),
            lambda: self._processes.get(BACKEND),
            settings.backend_timeout_s,
            self._tell_of_backend,
        )
        self._watching: asyncio.Task[None] | None = None
        self._control = ControlRelay(self._ready_backend)
        self._feed = FeedRelay(lambda: tuple(self._processes.values()), settings.workers)
        self._boot = made_id()
        self._keeping: dict[str, asyncio.Task[None]] = {}
        self._asked: set[asyncio.Task[object]] = set()
        self._draining = False
        self._complete = True
        self._all_ready = asyncio.Event()
        self._failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @property
    def port(self) -> int:
        """The first TCP port of gRPC; 0: none."""
        return self._shared.port

    @property
    def addresses(self) -> tuple[str, ...]:
        """Addresses that gRPC listens on, known once `start` has returned."""
        return self._shared.addresses

    @property
    def ready(self) -> bool:
        """Whether requests are answered."""
        return self._ready_backend() is not None and self._watch.answers and bool(self._taking_workers())

    @property
    def failed(self) -> asyncio.Future[None]:
        """Future that fails when a process can't be started any more."""
        return self._failed

    async def start(self) -> None:
        """Claim the ports, start every process, and return when all are ready.

        Raises:
            InputError: a port is taken, or a folder is no sound package, or two have the same name.
            BackendUnavailableError: the asked-for backend can't run here.
            BackendError: a process died before it was ready.
        """
        if not hasattr(os, "memfd_create"):
            raise InputError("--workers above 1 needs Linux; leave it out to serve from one process")
        for folder in (*self._folders, *self._settings.model_repository):
            if not _is_utf8(folder):
                raise InputError(
                    f"{folder}: with --workers the path of a package or repository must be UTF-8; rename it, or leave "
                    "it out"
                )
        settings = self._settings
        tls = self._watch_certificates()
        self._socket_folder = new_socket_folder(settings.grpc_addresses)
        self._shared = SharedAddresses(self._socket_folder, self._ready_workers)
        self._shared.take(settings.grpc_addresses)
        if settings.http_port:
            from fuseline.serve.workers.http_front import HttpFront

            self._http = HttpFront(
                settings, self.totals, lambda: self.ready, self._taking_workers, lambda: self._watch.is_live, tls
            )
            self.http_port = self._http.port
            await self._http.start()
        titles = [BACKEND, *(f"worker {number}" for number in range(1, settings.workers + 1))]
        for title in titles:
            self._keeping[title] = keeping = asyncio.create_task(self._keep_running(title))
            keeping.add_done_callback(self._note_defect)
        self._watching = asyncio.create_task(self._watch.run())
        all_ready = asyncio.create_task(self._all_ready.wait())
        await asyncio.wait((all_ready, self._failed), return_when=asyncio.FIRST_COMPLETED)
        all_ready.cancel()
        if self._failed.done():
            self._failed.result()
        await self._shared.start()
        backend = self._processes[BACKEND].ready
        assert backend is not None
        self.repository = tuple(map(ServedModel.model_validate, backend["models"]))

    async def drain(self) -> bool:
        """Let the workers refuse new requests and answer what they have, then end the backend.

        Return whether everything was answered; what is not within `drain_timeout_s` is given up.
        """
        self._draining = True
        self._stop_watching()
        self._adapt_http()
        titles = list(self._keeping)
        for group in ([title for title in titles if title != BACKEND], [BACKEND]):
            running = [self._processes[title] for title in group if title in self._processes]
            for process in running:
                # Once answers were given up, nobody waits for what is left to compute.
                (process.drain if self._complete else process.kill)()
            waiting = [self._keeping[title] for title in group]
            for title in group:
                if title not in self._processes:
                    self._keeping[title].cancel()
            _, late = await asyncio.wait(waiting, timeout=self._settings.drain_timeout_s + _EXIT_TIMEOUT_S)
            if late:
                self.kill()
                await asyncio.wait(late)
            self._complete &= not late and all(process.drained or process.ready is None for process in running)
        await self._close_http()
        await self._shared.finish()
        self.close()
        return self._complete

    def kill(self) -> None:
        """End every process at once."""
        for process in self._processes.values():
            process.kill()

    async def end(self) -> None:
        """End every process at once, and wait until they have ended: a loop that closes earlier complains of each."""
        self._draining = True
        self._stop_watching()
        loop = asyncio.get_running_loop()
        until = loop.time() + _EXIT_TIMEOUT_S
        waiting = {task for task in self._keeping.values() if not task.done()}
        while waiting and loop.time() < until:
            # One of them may just be starting, so this is repeated.
            self.kill()
            _, waiting = await asyncio.wait(waiting, timeout=_KILL_AGAIN_S)
        await self._close_http()

    def close(self) -> None:
        """Free the addresses of gRPC and the folder of their sockets, after the processes have ended."""
        if self._watching_files is not None:
            self._watching_files.cancel()
        self._shared.close()
        self._door.close()
        self._inner_door.close()
        if self._socket_folder is not None:
            shutil.rmtree(self._socket_folder, ignore_errors=True)

    def _ready_backend(self) -> SupervisedProcess | None:
        backend = self._processes.get(BACKEND)
        return None if backend is None or backend.ready is None else backend

    def _ready_workers(self) -> list[str]:
        """Return the titles of the workers that answer, those that drain included."""
        return [title for title, its in self._processes.items() if title != BACKEND and its.ready is not None]

    async def _keep_running(self, title: str) -> None:
        """Run the process called `title`, and again whenever it has ended, until the drain."""
        was_ready, failed_starts, short_lives = False, 0, 0
        while not self._draining:
            try:
                process = await self._start(title, again=was_ready)
            except OSError as error:
                failed_starts += 1
                if not was_ready or failed_starts == _MAX_FAILED_STARTS:
                    self._fail(BackendError(f"{title} can't be started: {error.strerror}"))
                    return
                _log.error("%s can't be started: %s; it is tried again", title, error.strerror)
                await asyncio.sleep(_pause_s(failed_starts + 1))
                continue
            self._processes[title] = process
            try:
                if (log := server_log()) is not None:
                    process.send_log_settings(log.settings)
                self._feed.begin(process)
                if title != BACKEND:
                    process.send_backend(answers=self._watch.answers, live=self._watch.is_live)
                await process.run(
                    self._note_ready,
                    partial(self._answer, process),
                    self._log_by,
                    partial(self._regions.take, process),
                    partial(self._control.take, process),
                    self._read_totals,
                    partial(setattr, self._control, "waiting"),
                    partial(self._feed.take, process),
                )
            finally:
                self._regions.leave(process)
                self._feed.leave(process)
                if title == BACKEND:
                    self._control.lose()
                self.totals.add_ended(process)
                del self._processes[title]
                self._adapt_http()
            if self._draining:
                return
            was_ready = was_ready or process.ready is not None
            failed_starts = 0 if process.ready is not None else failed_starts + 1
            if not was_ready:
                default = BackendError(f"{process.ending()} before it was ready; its log says more")
                self._fail(process.failure or default)
                return
            if failed_starts == _MAX_FAILED_STARTS:
                # Whatever the reason, it is none of how the server was started, which would end it with 2: it has
                # served.
                last = process.failure or "its log says more"
                self._fail(
                    BackendError(f"{process.ending()} before it was ready, {failed_starts} times in a row: {last}")
                )
                return
            short_lives = short_lives + 1 if asyncio.get_running_loop().time() - process.started < _LONG_LIFE_S else 0
            why = f": {process.failure}" if process.failure is not None else ""
            _log.error("%s%s; it is started again", process.ending(), why)
            self.totals.count_restart(title.partition(" ")[0])
            # The process starts again at once, unless it dies again and again.
            await asyncio.sleep(_pause_s(short_lives))

    def _fail(self, error: BaseException) -> None:
        """End the server by `error`, unless another one does already."""
        if not self._failed.done():
            self._failed.set_exception(error)

    async def _start(self, title: str, *, again: bool) -> SupervisedProcess:
        settings = self._settings
        is_backend = title == BACKEND
        if not is_backend:
            threads = -(-settings.decode_threads // settings.workers)
            listen = self._shared.of_worker(title)
            settings = settings.model_copy(update={"listen": listen, "decode_threads": threads})
        copy = [] if is_backend or self._certificates is None else copied_in_memory(self._certificates.current)
        http_file = None if is_backend or self._http is None else self._http.listener_file
        door_file = (self._inner_door if is_backend else self._door).fileno()
        files = [self._lifeline, door_file]
        if http_file is not None:
            files.append(http_file)
        files += copy

        def make_config(channel_file: int) -> ProcessConfig:
            return ProcessConfig(
                title=title,
                settings=settings,
                folders=self._folders,
                socket_folder=self._socket_folder,
                channel_file=channel_file,
                lifeline_file=self._lifeline,
                door_file=door_file,
                http_listener_file=http_file,
                certificate_copy=tuple(copy),
                again=again,
                wanted=self._control.wanted if is_backend else None,
                boot=self._boot,
                why_no_shared_memory=self._settings.why_no_shared_memory,
            )

        command = self._commands.backend if is_backend else self._commands.worker
        try:
            return await start_process(title, command, make_config, files)
        finally:
            for file in copy:
                os.close(file)

    def _watch_certificates(self) -> Callable[[], ssl.SSLContext] | None:
        """Read the files of TLS and watch them; return what `HttpServer` takes, None without TLS."""
        if (files := self._settings.certificate_files) is None:
            return None
        self._certificates = certificates = Certificates(files)
        self.totals.show_certificates(certificates)
        self._watching_files = asyncio.create_task(certificates.watch())
        return lambda: certificates.current.context

    def _note_defect(self, keeping: asyncio.Task[None]) -> None:
        """Fail if a task that keeps a process running raised; else `start` would wait for that process for ever."""
        if not keeping.cancelled() and (error := keeping.exception()) is not None:
            self._fail(error)

    def _note_ready(self) -> None:
        self._adapt_http()
        if (backend := self._ready_backend()) is not None and backend.ready is not None:
            self._control.begin(backend.ready["wanted"])
        processes = self._processes.values()
        if len(processes) == len(self._keeping) and all(process.ready is not None for process in processes):
            self._all_ready.set()

    def _taking_workers(self) -> list[SupervisedProcess]:
        """Return the workers that take requests."""
        return [] if self._draining else [self._processes[title] for title in self._ready_workers()]

    def _tell_of_backend(self) -> None:
        """Let the workers know whether the backend gives signs of life."""
        for title, process in self._processes.items():
            if title != BACKEND:
                process.send_backend(answers=self._watch.answers, live=self._watch.is_live)

    def _stop_watching(self) -> None:
        """Watch the processes no more: in a drain their time is bounded otherwise."""
        if self._watching is not None:
            self._watching.cancel()
            self._watching = None

    def _adapt_http(self) -> None:
        if self._http is not None:
            self._http.adapt()

    async def _close_http(self) -> None:
        if self._http is not None:
            await self._http.close()

    def _answer(self, asker: SupervisedProcess, kind: str, number: int) -> None:
        async def answer() -> None:
            asker.answer(kind, number, await self.totals.read())

        self._begin(answer())

    def _read_totals(self) -> None:
        """Let the totals forget what every process has dropped, as nobody may ever read them."""
        self._begin(self.totals.read())

    def _begin(self, work: Coroutine[Any, Any, object]) -> None:
        task = asyncio.create_task(work)
        self._asked.add(task)
        task.add_done_callback(self._asked.discard)

    def _log_by(self, settings: LogSettings) -> None:
        """Let every process log by `settings`, which a client gave to one of them."""
        if (log := server_log()) is not None:
            log.apply(settings)
        for process in self._processes.values():
            process.send_log_settings(settings)


def _pause_s(deaths: int) -> float:
    """Return for how many seconds a process that has died so often soon after its start is not started again."""
    return min(_MAX_PAUSE_S, 0.1 * 2 ** (deaths - 1)) if deaths > 1 else 0


def _is_utf8(path: Path) -> bool:
    """Return whether `path` can be sent to other processes in JSON."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return True


def run_supervisor(
    folders: Sequence[Path],
    settings: Settings,
    announce: Callable[[Supervisor], None],
    commands: Commands = Commands(),
) -> int:
    """Serve until SIGTERM, SIGINT or SIGHUP, drain, and return the exit code: 0, or 1 if answers had to be given up.

    `announce` is called when ready. A second signal ends all processes at once, with 128 + its number.
    """
    with asyncio.Runner() as runner:
        return runner.run(_run(folders, settings, announce, commands))


async def _run(
    folders: Sequence[Path], settings: Settings, announce: Callable[[Supervisor], None], commands: Commands
) -> int:
    supervisor = Supervisor(folders, settings, commands)
    stop = asyncio.Event()

    def on_signal(number: int) -> None:
        if stop.is_set():
            _log.warning("second signal: exiting at once")
            supervisor.kill()
            supervisor.close()
            end_process(128 + number)
        _log.info("%s: draining for at most %g s", signal.Signals(number).name, settings.drain_timeout_s)
        stop.set()

    loop = asyncio.get_running_loop()
    for number in stop_signals():
        loop.add_signal_handler(number, on_signal, number)
    try:
        if not await _unless(stop, supervisor.start()):
            return 0
        announce(supervisor)
        await asyncio.wait((asyncio.create_task(stop.wait()), supervisor.failed), return_when=asyncio.FIRST_COMPLETED)
        if supervisor.failed.done():
            supervisor.failed.result()
        complete = await supervisor.drain()
    finally:
        await supervisor.end()
        supervisor.close()
    if not complete:
        _log.error("answers were still owed after %g s and are given up", settings.drain_timeout_s)
        return 1
    _log.info("drained; answers since the start: %s", supervisor.totals.answers())
    return 0


async def _unless(stop: asyncio.Event, work: Awaitable[None]) -> bool:
    """Await `work`; return whether it was done before `stop`."""
    working = asyncio.ensure_future(work)
    stopping = asyncio.create_task(stop.wait())
    await asyncio.wait((working, stopping), return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    if not working.done():
        working.cancel()
        return False
    working.result()
    return True
