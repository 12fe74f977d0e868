"""A stream of images over HTTP, which has no streams: requests of one image each, several at a time."""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

from fuseline.serve.client.answers import Answer, StreamAnswer
from fuseline.serve.client.requests import ImageLike, numbered_until_broken
from fuseline.serve.errors import FuselineError, InputError

_REQUESTS_UNDER_WAY = 8


def stream_over_http(
    classify: Callable[[ImageLike, float | None], Answer], images: Iterable[ImageLike], timeout_s: float | None
) -> Iterator[StreamAnswer]:
    """Yield the answer to each of `images`, in their order, by `classify(image, seconds left)`, called in threads.

    `timeout_s` bounds the stream as a whole. Raises `InputError` where no server answers, and what `images` itself
    raises, after the answers to what it gave before.
    """
    deadline = None if timeout_s is None else time.monotonic() + timeout_s

    def answer(position: int, image: ImageLike) -> StreamAnswer:
        try:
            return StreamAnswer(
                position, classify(image, None if deadline is None else deadline - time.monotonic()), None
            )
        except FuselineError as error:
            # Of one image, unless there is no server at all.
            if type(error) is InputError:
                raise
            return StreamAnswer(position, None, error)

    pending: deque[Future[StreamAnswer]] = deque()
    broken: list[Exception] = []
    pool = ThreadPoolExecutor(_REQUESTS_UNDER_WAY, thread_name_prefix="fuseline-client")
    try:
        for position, image in numbered_until_broken(images, broken):
            pending.append(pool.submit(answer, position, image))
            if len(pending) == _REQUESTS_UNDER_WAY:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
    if broken:
        raise broken[0]
