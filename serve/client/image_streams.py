"""A stream of images whose requests are calls of their own, several at a time; answers are yielded as they come.

A stream of gRPC is one call, which one server has; when that is gone so are all its images. Over several servers calls
are balanced one by one, and those that a server leaves unanswered go to another one. HTTP has no streams at all.
"""

import asyncio
import queue
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

from fuseline.serve.client.answers import Answer, StreamAnswer
from fuseline.serve.client.requests import ImageLike
from fuseline.serve.errors import ForbiddenError, FuselineError, InputError, UnauthenticatedError

THREADS = 32
"""Images under way of `stream_of_calls` over several servers."""
HTTP_THREADS = 8
"""The same over HTTP to one server."""
_UNDER_WAY = 64


def stream_of_calls(
    classify: Callable[[ImageLike, float | None], Answer],
    images: Iterable[ImageLike],
    timeout_s: float | None,
    threads: int = THREADS,
) -> Iterator[StreamAnswer]:
    """Yield the answer to each of `images` as it comes, by `classify(image, seconds left)`, called in so many threads.

    Images are taken in a thread too, so that an iterable may wait for the answer to one before it gives the next.
    `timeout_s` bounds the stream as a whole. Raises what would fail every image: that no server answers, or takes the
    token; and what `images` itself raises, after the answers to what it gave before.
    """
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    ended: queue.SimpleQueue[Future[StreamAnswer] | None] = queue.SimpleQueue()
    free = threading.Semaphore(threads)
    is_left = threading.Event()
    broken: list[BaseException] = []
    given = 0

    def answer(position: int, image: ImageLike) -> StreamAnswer:
        try:
            left_s = None if deadline is None else deadline - time.monotonic()
            return StreamAnswer(position, classify(image, left_s), None)
        except FuselineError as error:
            return _refused(position, error)

    def give() -> None:
        nonlocal given
        try:
            for position, image in enumerate(images):
                free.acquire()
                if is_left.is_set():
                    return
                pool.submit(answer, position, image).add_done_callback(ended.put)
                given += 1
        except BaseException as error:  # noqa: BLE001 it is raised where the answers are read, once they are out
            broken.append(error)
        ended.put(None)

    pool = ThreadPoolExecutor(threads, thread_name_prefix="fuseline-client")
    # Nothing can end a thread that waits in somebody's iterable.
    threading.Thread(target=give, name="fuseline-images", daemon=True).start()
    answered, are_all_given = 0, False
    try:
        while not are_all_given or answered < given:
            if (future := ended.get()) is None:
                are_all_given = True
                continue
            answered += 1
            free.release()
            yield future.result()
    finally:
        is_left.set()
        free.release()
        pool.shutdown(cancel_futures=True)
    if broken:
        raise broken[0]


async def async_stream_of_calls(
    classify: Callable[[ImageLike, float | None], Awaitable[Answer]],
    images: AsyncIterator[ImageLike],
    timeout_s: float | None,
) -> AsyncGenerator[StreamAnswer]:
    """Do the same by tasks of the event loop, one of which takes the images."""
    loop = asyncio.get_running_loop()
    deadline = None if timeout_s is None else loop.time() + timeout_s
    ended: asyncio.Queue[asyncio.Task[StreamAnswer] | None] = asyncio.Queue()
    free = asyncio.Semaphore(_UNDER_WAY)
    under_way: set[asyncio.Task[StreamAnswer]] = set()
    broken: list[Exception] = []

    async def answer(position: int, image: ImageLike) -> StreamAnswer:
        try:
            left_s = None if deadline is None else deadline - loop.time()
            return StreamAnswer(position, await classify(image, left_s), None)
        except FuselineError as error:
            return _refused(position, error)

    async def give() -> None:
        position = 0
        try:
            async for image in images:
                await free.acquire()
                task = asyncio.create_task(answer(position, image))
                under_way.add(task)
                task.add_done_callback(ended.put_nowait)
                position += 1
        except Exception as error:  # noqa: BLE001 it is raised once the answers are out
            broken.append(error)
        ended.put_nowait(None)

    giving = asyncio.create_task(give())
    are_all_given = False
    try:
        while not are_all_given or under_way:
            if (task := await ended.get()) is None:
                are_all_given = True
                continue
            under_way.discard(task)
            free.release()
            yield task.result()
    finally:
        giving.cancel()
        for task in under_way:
            task.cancel()
        await asyncio.gather(giving, *under_way, return_exceptions=True)
    if broken:
        raise broken[0]


def _refused(position: int, error: FuselineError) -> StreamAnswer:
    """Return the answer to one image that failed; raise what would fail the others too."""
    if type(error) is InputError or isinstance(error, UnauthenticatedError | ForbiddenError):
        raise error
    return StreamAnswer(position, None, error)
