"""Calls over several servers, as a client that balances them: the load generator's transport for replicas."""

import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from fuseline.benchmarks.load.calls import Call, open_calls
from fuseline.serve.balancing.choice import MORE_THAN_BEGUN, less_loaded_of_two


@asynccontextmanager
async def open_balanced_calls(
    addresses: str, method: str, *, streams: int = 0, timeout_s: float | None = None
) -> AsyncIterator[Call]:
    """Yield what sends a request to one of `addresses`, separated by commas, by the clients' own choice.

    A call is under way from its sending to its end. Else as `open_calls`.
    """
    async with AsyncExitStack() as stack:
        calls = [
            await stack.enter_async_context(open_calls(address, method, streams=streams, timeout_s=timeout_s))
            for address in addresses.split(",")
        ]
        loads = [0] * len(calls)
        rand = random.Random(0).random  # noqa: S311 nobody gains by guessing

        async def call(request: bytes) -> bytes:
            index = less_loaded_of_two(loads, rand)
            loads[index] += MORE_THAN_BEGUN + 1
            try:
                return await calls[index](request)
            finally:
                loads[index] -= MORE_THAN_BEGUN

        yield call
