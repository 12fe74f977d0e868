"""The less loaded of two random servers."""

from collections.abc import Callable, Sequence


def less_loaded_of_two(under_way: Sequence[int], rand: Callable[[], float]) -> int:
    """Return the index into `under_way`, the requests under way at each server, of the server for the next request.

    Two different servers are drawn uniformly, and the one with fewer requests is taken, the first drawn if they have
    equally many. Compared with one random choice, two shorten the longest queue exponentially, a third adds little, and
    unlike the least loaded of all, clients that know only of their own requests don't all run to the same server
    (Mitzenmacher, "The Power of Two Choices in Randomized Load Balancing", IEEE TPDS 12(10), 2001).

    `rand` returns numbers from 0 to below 1; it is called twice, of a single server not at all. Raises `ValueError`
    when there is no server.
    """
    count = len(under_way)
    if count == 0:
        raise ValueError("under_way is empty; there must be a server to choose")
    if count == 1:
        return 0
    first = int(rand() * count)
    second = int(rand() * (count - 1))
    if second >= first:
        second += 1
    return second if under_way[second] < under_way[first] else first
