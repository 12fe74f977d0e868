"""A stream of images over several servers: each image is a call of its own, several at a time, answers as they come.

A stream of gRPC is one call, which one server has; when that is gone so are all its images. Calls are balanced one by
one, and those that a server leaves unanswered go to another one.
"""

import asyncio
import queue
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

from fuseline.serve.client.answers import Answer, StreamAnswer
from fuseline.serve.client.requests import ImageLike, numbered_until_broken
from fuseline.serve.errors import ForbiddenError, FuselineError, InputError, UnauthenticatedError

_THREADS = 32
_UNDER_WAY = 64


def stream_over_servers(
    classify: Callable[[ImageLike, float | None], Answer], images: Iterable[ImageLike], timeout_s: float | None
) -> Iterator[StreamAnswer]:
    """Yield the answer to each of `images` as it comes, by `classify(image, seconds left)`, called in threads.

    `timeout_s` bounds the stream as a whole. Raises what would fail every image: that no server answers, or takes the
    token; and what `images` itself raises, after the answers to what it gave before.
    """
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    ended: queue.SimpleQueue[Future[StreamAnswer]] = queue.SimpleQueue()

    def answer(position: int, image: ImageLike) -> StreamAnswer:
        try:
            left_s = None if deadline is None else deadline - time.monotonic()
            return StreamAnswer(position, classify(image, left_s), None)
        except FuselineError as error:
            return _refused(position, error)

    under_way = 0
    broken: list[Exception] = []
    pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="fuseline-client")
    try:
        for position, image in numbered_until_broken(images, broken):
            pool.submit(answer, position, image).add_done_callback(ended.put)
            under_way += 1
            while under_way == _THREADS or (under_way and not ended.empty()):
                yield ended.get().result()
                under_way -= 1
        for _ in range(under_way):
            yield ended.get().result()
    finally:
        pool.shutdown(cancel_futures=True)
    if broken:
        raise broken[0]


async def async_stream_over_servers(
    classify: Callable[[ImageLike, float | None], Awaitable[Answer]],
    images: AsyncIterator[ImageLike],
    timeout_s: float | None,
) -> AsyncGenerator[StreamAnswer]:
    """Do the same on the event loop."""
    loop = asyncio.get_running_loop()
    deadline = None if timeout_s is None else loop.time() + timeout_s
    ended: asyncio.Queue[asyncio.Task[StreamAnswer]] = asyncio.Queue()

    async def answer(position: int, image: ImageLike) -> StreamAnswer:
        try:
            left_s = None if deadline is None else deadline - loop.time()
            return StreamAnswer(position, await classify(image, left_s), None)
        except FuselineError as error:
            return _refused(position, error)

    under_way: set[asyncio.Task[StreamAnswer]] = set()
    broken: Exception | None = None
    position = 0
    try:
        while True:
            try:
                image = await anext(images)
            except StopAsyncIteration:
                break
            except Exception as error:  # noqa: BLE001 it is raised once the answers are out
                broken = error
                break
            task = asyncio.create_task(answer(position, image))
            under_way.add(task)
            task.add_done_callback(ended.put_nowait)
            position += 1
            while len(under_way) == _UNDER_WAY or not ended.empty():
                under_way.discard(task := await ended.get())
                yield task.result()
        while under_way:
            under_way.discard(task := await ended.get())
            yield task.result()
    finally:
        for task in under_way:
            task.cancel()
        await asyncio.gather(*under_way, return_exceptions=True)
    if broken is not None:
        raise broken


def _refused(position: int, error: FuselineError) -> StreamAnswer:
    """Return the answer to one image that failed; raise what would fail the others too."""
    if type(error) is InputError or isinstance(error, UnauthenticatedError | ForbiddenError):
        raise error
    return StreamAnswer(position, None, error)
