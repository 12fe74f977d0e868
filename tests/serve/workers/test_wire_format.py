import math

from hypothesis import given
from hypothesis import strategies as st

from fuseline.serve.batching.requests import ANYONE, Caller
from fuseline.serve.tracing.span_bytes import SPAN_BYTES
from fuseline.serve.workers.wire_format import (
    ANSWER,
    BATCHES,
    CANCEL,
    ERROR,
    FORGOTTEN,
    MEMORY,
    RELEASED,
    SUBMIT,
    TAKEN,
    TRACED,
    ToBackend,
    ToWorker,
    answer_record,
    batches_record,
    caller_from,
    cancel_record,
    catalogue_record,
    error_record,
    forgotten_record,
    memory_record,
    reader_of_backend_records,
    reader_of_worker_records,
    released_record,
    slots_and_span_from_tail,
    slots_from_tail,
    submit_record,
    taken_record,
)

SPAN = bytes(range(100, 100 + SPAN_BYTES))


@given(st.lists(st.integers(1, 60), min_size=1))
def test_a_workers_records_are_read_wherever_the_pieces_end(pieces: list[int]) -> None:
    stream = (
        submit_record(1, 2**40, [7, 0, 2**31], 12.5, (11.5, 2.5, True), Caller("10.0.0.7", 3))
        + submit_record(1, 2**40, [7, 0, 2**31], 12.5, (11.5, 2.5, True), Caller("10.0.0.7", 3), SPAN)
        + cancel_record(0, 5)
        + submit_record(0, 6, [1], math.inf)
        + memory_record(2, 2**45)
        + taken_record(2**33)
    )
    reader, read, start = reader_of_worker_records(), [], 0
    while start < len(stream):
        for piece in pieces:
            read += [(ToBackend(*head), tail) for head, tail in reader.feed(stream[start : start + piece])]
            start += piece
    (submit, slots), (traced, slots_and_span), (cancel, nothing), (endless, one), (memory, _), (taken, _) = read
    assert submit[:-1] == (SUBMIT, 1, 2**40, 3, 12.5, 11.5, 2.5, True, 3)
    assert slots_from_tail(slots) == [7, 0, 2**31]
    assert traced == (TRACED, *submit[1:])
    assert slots_and_span_from_tail(slots_and_span) == ([7, 0, 2**31], SPAN)
    # What is not traced is sent as if nothing were.
    assert slots_and_span == slots + SPAN
    assert (cancel.kind, cancel.model, cancel.number, nothing) == (CANCEL, 0, 5, b"")
    assert endless.deadline == math.inf
    assert slots_from_tail(one) == [1]
    assert memory[:3] == (MEMORY, 2, 2**45)
    assert (taken.kind, taken.number) == (TAKEN, 2**33)


@given(st.integers(1, 100))
def test_the_backends_records_are_read_wherever_the_pieces_end(piece: int) -> None:
    stream = answer_record(0, 1, batch_rows=9, queue_ms=0.5, compute_ms=2.0)
    stream += batches_record(3, 2, SPAN * 2) + error_record(3, 2, "größer".encode()) + released_record(3, 2)
    stream += catalogue_record(2**33, b"{}" * 40) + forgotten_record(3)
    reader, read = reader_of_backend_records(), []
    for start in range(0, len(stream), piece):
        read += [(ToWorker(*head), tail) for head, tail in reader.feed(stream[start : start + piece])]
    assert read[0] == ((ANSWER, 0, 1, 9, 0.5, 2.0), b"")
    assert (read[1][0][:3], read[1][1]) == ((BATCHES, 3, 2), SPAN * 2)
    assert (read[2][0][:3], read[2][1].decode()) == ((ERROR, 3, 2), "größer")
    assert read[3][0][:3] == (RELEASED, 3, 2)
    assert (read[4][0].number, read[4][1]) == (2**33, b"{}" * 40)
    assert read[5][0][:2] == (FORGOTTEN, 3)


def read_caller(caller: Caller) -> Caller:
    """The caller as the backend process sees it."""
    ((head, _),) = reader_of_worker_records().feed(submit_record(0, 1, [0], math.inf, caller=caller))
    return caller_from(ToBackend(*head).client, ToBackend(*head).priority)


@given(st.lists(st.text(), unique=True), st.integers(0, 2**64))
def test_clients_are_told_apart_by_whatever_worker_sends_them_and_priorities_keep_their_order(
    names: list[str], priority: int
) -> None:
    seen = [read_caller(Caller(name, priority)) for name in names]
    assert len({caller.client for caller in seen}) == len(names)
    assert {caller.priority for caller in seen} <= {min(priority, 255)}
    assert read_caller(ANYONE) == ANYONE
    # Another process, with other hashes of its own, sends the same.
    assert read_caller(Caller("10.0.0.7")).client == "02d93016ccd52ea4"
