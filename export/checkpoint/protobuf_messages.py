"""The framework that a file's Protocol Buffers message belongs to, by the numbers and kinds of its outermost fields.

The encoding is that of protobuf.dev/programming-guides/encoding. Only lengths are followed; no field's content is read.
"""

from collections.abc import Iterator
from mmap import mmap

_MAX_FIELDS = 100_000


def is_onnx(data: mmap) -> bool:
    """Return whether it is onnx.proto's ModelProto: ir_version, texts on the producer, graph (7), opset imports (8)."""
    fields = _protobuf(data)
    return fields.get(1) == {0} and max(fields) <= 30 and 7 in fields


def is_saved_model(data: mmap) -> bool:
    """Return whether it is saved_model.proto's SavedModel: schema version 1, then graphs."""
    fields = _protobuf(data)
    return data[:2] == b"\x08\x01" and fields.keys() == {1, 2}


def is_graph_def(data: mmap) -> bool:
    """Return whether it is graph.proto's GraphDef: nodes, each of which begins with its name."""
    fields = _protobuf(data)
    return data[:1] == b"\x0a" and fields.keys() <= {1, 2, 3, 4, 5} and fields.get(1) == {2} and 4 in fields


def is_core_ml(data: mmap) -> bool:
    """Return whether it is Model.proto's Model: specification version, description, and its kind as a field >= 200."""
    fields = _protobuf(data)
    return fields.get(1) == {0} and bool(fields) and max(fields) >= 200


def _fields(data: mmap) -> Iterator[tuple[int, int, int]]:
    """Yield (number, kind, value) of each field of a protobuf message; the value of a field with a length is that.

    Raises:
        ValueError: `data` is no message of protobuf, or cut short.
    """
    position = 0

    def varint() -> int:
        nonlocal position
        value = 0
        for shift in range(0, 64, 7):
            if position >= len(data):
                break
            byte = data[position]
            position += 1
            value |= (byte & 127) << shift
            if byte < 128:
                return value
        raise ValueError("a number without an end")

    for _ in range(_MAX_FIELDS):
        if position == len(data):
            return
        tag = varint()
        number, kind = tag >> 3, tag & 7
        value = varint() if kind in (0, 2) else {1: 8, 5: 4}.get(kind, -1)
        if not number or value < 0:
            raise ValueError("an unknown kind of field")
        yield number, kind, value
        position += 0 if kind == 0 else value
        if position > len(data):
            raise ValueError("a field is cut short")


def _protobuf(data: mmap) -> dict[int, set[int]]:
    """Return field number -> kinds of a protobuf message; {} if `data` is none."""
    if data[:1] not in (b"\x08", b"\x0a"):
        return {}
    found: dict[int, set[int]] = {}
    try:
        for number, kind, _ in _fields(data):
            found.setdefault(number, set()).add(kind)
    except ValueError:
        # A message that is cut short is still recognised by its beginning.
        return found if len(found) > 1 else {}
    return found
