"""The records that a worker and the backend process write to each other: a head of fixed size and, in some, a tail.

A worker sends SUBMIT (tail: the slots, uint32 each), CANCEL, and DRAIN, after which it submits nothing for the model.
The backend sends ANSWER, whose logits lie in the request's slots; ERROR (tail: JSON); RELEASED. With ANSWER the
request's slots are the worker's again; after ERROR or CANCEL they are with RELEASED, which comes once nothing reads
them any more, and never twice.

A request that is traced is sent as TRACED, a SUBMIT whose tail goes on with what its span is known by. Before its
ANSWER or ERROR then comes BATCHES (tail: see `fuseline.serve.tracing.tracing.Tracer.batches_of`), if the backend traces
too. Other requests are sent and answered as if nothing were traced.

Models come and go by the same connection, in order with their requests. CATALOGUE (tail: JSON, see
`fuseline.serve.workers.catalogue`) says what is served from now on. The worker answers with a MEMORY for each model
that is new to it, then with TAKEN: from there on its new requests are for models of that catalogue. For each model that
went it sends DRAIN once no request needs it any more. The backend answers DRAIN with FORGOTTEN once it neither reads
nor writes the model's memory, and names the model no more.

Both ends are processes of one installation on one machine, and use its byte order.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from hashlib import blake2b
from struct import Struct, pack
from typing import Any, NamedTuple

from fuseline.serve.batching.requests import ANYONE, Caller
from fuseline.serve.tracing.span_bytes import SPAN_BYTES

SUBMIT, TRACED, CANCEL, DRAIN, MEMORY, TAKEN = 1, 2, 3, 4, 5, 6
ANSWER, ERROR, RELEASED, CATALOGUE, FORGOTTEN, BATCHES = 7, 8, 9, 10, 11, 12

UNPREDICTED = (0.0, 0.0, False)
_WITH_TAIL = (ERROR, CATALOGUE, BATCHES)

_TO_BACKEND = Struct("=BIQIddd?BQ")
_TO_WORKER = Struct("=BIQIdd")
_LARGEST_BYTE = 255
_REMEMBERED_CLIENTS = 8192


class ToBackend(NamedTuple):
    """Head of a worker's record."""

    kind: int
    model: int
    """Number of the model: see `fuseline.serve.workers.catalogue.Catalogue`."""
    number: int
    """Number of the request, unique for this model and connection; offset in bytes of a MEMORY in what the worker
    shares; generation of the catalogue of a TAKEN."""
    rows: int
    """Number of slots in the tail."""
    deadline: float
    """Time on the clock of `time.monotonic`, in seconds, which all processes of a machine share; infinity: none."""
    predicted_at: float
    """Time on the same clock for which the worker predicted the answer at admission; 0: the backend does admission."""
    predicted_seconds: float
    """Seconds from that admission to `predicted_at`."""
    is_probe: bool
    """See `fuseline.serve.batching.predictions.PredictedAnswer`."""
    priority: int
    """See `fuseline.serve.batching.requests.Caller`; lower ones than 255 are sent as 255."""
    client: int
    """Hash of the client's name, the same in every worker; 0: the empty name."""


class ToWorker(NamedTuple):
    """Head of a backend's record."""

    kind: int
    model: int
    number: int
    """Number of the request; generation of a CATALOGUE."""
    size: int
    """Number of rows of the largest batch in an ANSWER; number of bytes of the tail in those that have
    one."""
    queue_ms: float
    compute_ms: float


def submit_record(
    model: int,
    number: int,
    slots: Sequence[int],
    deadline: float,
    predicted: tuple[float, float, bool] = UNPREDICTED,
    caller: Caller = ANYONE,
    span: bytes = b"",
) -> bytes:
    """Return the record of a request whose rows lie in `slots`, in order; `predicted` if the worker admitted it.

    `span` has the `SPAN_BYTES` of a request that is traced.
    """
    rows = len(slots)
    client, priority = caller
    kind = TRACED if span else SUBMIT
    head = _TO_BACKEND.pack(
        kind, model, number, rows, deadline, *predicted, min(priority, _LARGEST_BYTE), _hash_of(client)
    )
    return head + pack(f"={rows}I", *slots) + span


def cancel_record(model: int, number: int) -> bytes:
    """Return the record that says that nobody waits for this request any more."""
    return _without_rows(CANCEL, model, number)


def drain_record(model: int) -> bytes:
    """Return the record that says that no more requests for the model will come from this worker."""
    return _without_rows(DRAIN, model, 0)


def memory_record(model: int, offset: int) -> bytes:
    """Return the record that says where, in what this worker shares, the rows of a new model will lie."""
    return _without_rows(MEMORY, model, offset)


def taken_record(generation: int) -> bytes:
    """Return the record that says that new requests of this worker are for the models of this catalogue."""
    return _without_rows(TAKEN, 0, generation)


def _without_rows(kind: int, model: int, number: int) -> bytes:
    return _TO_BACKEND.pack(kind, model, number, 0, 0.0, *UNPREDICTED, 0, 0)


def answer_record(model: int, number: int, *, batch_rows: int, queue_ms: float, compute_ms: float) -> bytes:
    """Return the record that says that the logits are in the request's slots."""
    return _TO_WORKER.pack(ANSWER, model, number, batch_rows, queue_ms, compute_ms)


def batches_record(model: int, number: int, batches: bytes) -> bytes:
    """Return the record of the batches that a request which is traced had rows in; `batches` is its tail."""
    return _TO_WORKER.pack(BATCHES, model, number, len(batches), 0.0, 0.0) + batches


def error_record(model: int, number: int, text: bytes) -> bytes:
    """Return the record of a request that failed, with `text` as its tail; its slots may still be read."""
    return _TO_WORKER.pack(ERROR, model, number, len(text), 0.0, 0.0) + text


def released_record(model: int, number: int) -> bytes:
    """Return the record that says that the slots of a failed or cancelled request are not read any more."""
    return _TO_WORKER.pack(RELEASED, model, number, 0, 0.0, 0.0)


def catalogue_record(generation: int, text: bytes) -> bytes:
    """Return the record that says what is served from now on; `text` is its tail."""
    return _TO_WORKER.pack(CATALOGUE, 0, generation, len(text), 0.0, 0.0) + text


def forgotten_record(model: int) -> bytes:
    """Return the record that says that the backend uses this worker's memory for a model no more."""
    return _TO_WORKER.pack(FORGOTTEN, model, 0, 0, 0.0, 0.0)


class RecordReader:
    """Cuts a stream of bytes into records, however it is split into the pieces that arrive."""

    def __init__(self, head: Struct, tail_bytes: Callable[[tuple[Any, ...]], int]) -> None:
        self._head = head
        self._tail_bytes = tail_bytes
        self._rest = b""

    def feed(self, data: bytes) -> Iterator[tuple[tuple[Any, ...], bytes]]:
        """Yield (head, tail) of each record that is complete now; exhaust the iterator before the next `feed`."""
        data = self._rest + data if self._rest else data
        unpack, size, position = self._head.unpack_from, self._head.size, 0
        while position + size <= len(data):
            head = unpack(data, position)
            end = position + size + self._tail_bytes(head)
            if end > len(data):
                break
            yield head, data[position + size : end]
            position = end
        self._rest = data[position:]


def reader_of_worker_records() -> RecordReader:
    """Return the reader for the backend process; heads are the fields of `ToBackend`."""
    return RecordReader(_TO_BACKEND, lambda head: 4 * head[3] + SPAN_BYTES * (head[0] == TRACED))


def reader_of_backend_records() -> RecordReader:
    """Return the reader for a worker; heads are the fields of `ToWorker`."""
    return RecordReader(_TO_WORKER, lambda head: head[3] if head[0] in _WITH_TAIL else 0)


def slots_from_tail(tail: bytes) -> list[int]:
    """Return the slots that the tail of a SUBMIT lists."""
    return memoryview(tail).cast("I").tolist()


def slots_and_span_from_tail(tail: bytes) -> tuple[list[int], bytes]:
    """Return the slots that the tail of a TRACED lists, and what its request's span is known by."""
    return slots_from_tail(tail[:-SPAN_BYTES]), tail[-SPAN_BYTES:]


@lru_cache(_REMEMBERED_CLIENTS)
def caller_from(client: int, priority: int) -> Caller:
    """Return the caller of a SUBMIT. Its client's name is another than in the worker, and as different from others'."""
    return Caller(f"{client:016x}" if client else "", priority)


@lru_cache(_REMEMBERED_CLIENTS)
def _hash_of(client: str) -> int:
    # Python's own hash of a string is another one in each process.
    return int.from_bytes(blake2b(client.encode(errors="surrogatepass"), digest_size=8).digest()) if client else 0
