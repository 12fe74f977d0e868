"""The less loaded of two random servers."""

from collections.abc import Callable, Sequence

MORE_THAN_BEGUN = 2**20
"""What one request under way weighs in a load, against requests that a server was given before."""


def less_loaded_of_two(loads: Sequence[int], rand: Callable[[], float]) -> int:
    """Return the index into `loads` of the server for the next request.

    A load is the number of requests that are under way at a server, or that times `MORE_THAN_BEGUN` and the number that
    it was given so far, so that of two which have equally many under way the one that got fewer is taken.

    Two different servers are drawn uniformly, and the one with the smaller load is taken, the first drawn if they are
    equal. Compared with one random choice, two shorten the longest queue exponentially, a third adds little, and
    unlike the least loaded of all, clients that know only of their own requests don't all run to the same server
    (Mitzenmacher, "The Power of Two Choices in Randomized Load Balancing", IEEE TPDS 12(10), 2001).

    `rand` returns numbers from 0 to below 1; it is called twice, of a single server not at all. Raises `ValueError`
    when there is no server.
    """
    count = len(loads)
    if count == 0:
        raise ValueError("loads is empty; there must be a server to choose")
    if count == 1:
        return 0
    first = int(rand() * count)
    second = int(rand() * (count - 1))
    if second >= first:
        second += 1
    return second if loads[second] < loads[first] else first
