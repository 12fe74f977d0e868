"""Why a batch left with the rows that it has, and neither earlier nor later."""

from typing import Literal

BatchReason = Literal["full", "deadline", "delay", "drain", "next", "idle"]
"""full: it has all the rows that a batch may have now. deadline: it would have more rows, or have waited for more, but
for a request's deadline. delay: it has waited for a fuller batch as long as it may. drain: the batcher ends. next: its
lane took what had come while it computed the batch before. idle: its lane had nothing to do, and took what came."""

BATCH_REASONS: tuple[BatchReason, ...] = ("full", "deadline", "delay", "drain", "next", "idle")


def reason_of(
    rows: int,
    waiting_rows: int,
    most_rows: int,
    share_rows: int,
    heeds_deadline: bool,
    draining: bool,
    follows: bool,
    delay_s_left: float | None = None,
) -> BatchReason:
    """Return why a batch of `rows`, before padding, leaves while `waiting_rows` wait, its own included.

    Args:
        rows: rows of the batch.
        waiting_rows: rows that waited when it was formed.
        most_rows: the most rows that a batch may have at this time.
        share_rows: the most that this one may have: its lane's share of what waits, at most `most_rows`.
        heeds_deadline: whether it is smaller, or requests left the queue, for the sake of deadlines.
        draining: whether the batcher ends.
        follows: whether its lane has just finished another batch.
        delay_s_left: seconds for which it could have waited for a fuller batch; None: batches don't wait.
    """
    if heeds_deadline:
        return "deadline"
    if rows >= most_rows or (rows < waiting_rows and rows < share_rows):
        # The second is a batch that fills a smaller bucket, where padding a larger one would cost more.
        return "full"
    if draining:
        return "drain"
    if delay_s_left is not None:
        return "delay" if delay_s_left <= 0 else "deadline"
    return "next" if follows else "idle"
