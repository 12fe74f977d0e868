"""Request bodies that are compressed (RFC 9110, 8.4)."""

import asyncio
import reprlib
import zlib
from collections.abc import Callable

from fuseline.serve.http.body_buffer import BodyBuffer
from fuseline.serve.http.refusal import Refusal
from fuseline.serve.http.request_body import Body

_INPUT_BYTES = 64 * 2**10
_OUTPUT_BYTES = 2**18
"""Sizes of the steps. Between two of them, some tenths of a millisecond each, the event loop turns."""

_GZIP_BITS = 16 + zlib.MAX_WBITS


async def decompressed(body: Body, encoding: bytes, max_bytes: int, charge: Callable[[int], None]) -> Body:
    """Return `body` without its content encoding `gzip` or `deflate`, at most `max_bytes`.

    `charge` is called with the number of bytes before each part of the result is kept.

    Raises:
        Refusal: another encoding (415), a body that is not whole or not of its encoding (400), a result that is too
            large (413), or what `charge` raises. Until then, no more than `max_bytes` and a step were allocated.
    """
    inflate = zlib.decompressobj(_window_bits(body, encoding))
    result, start = BodyBuffer(max_bytes), 0
    try:
        while not inflate.eof:
            part: bytes | memoryview = inflate.unconsumed_tail
            if not part:
                if start >= len(body):
                    raise Refusal(400, f"the body ends before its {encoding.decode()} data does; send all of it")
                part = memoryview(body)[start : start + _INPUT_BYTES]
                start += _INPUT_BYTES
            step = inflate.decompress(part, _OUTPUT_BYTES)
            charge(len(step))
            result.append(step)
            if not inflate.eof and (len(step) == _OUTPUT_BYTES or start % _OUTPUT_BYTES == 0):
                await asyncio.sleep(0)
    except zlib.error as error:
        raise Refusal(400, f"the body is not of its Content-Encoding {encoding.decode()} ({error})") from error
    if inflate.unused_data or start < len(body):
        raise Refusal(400, f"bytes follow the end of the body's {encoding.decode()} data; send one such stream")
    return result.content()


def _window_bits(body: Body, encoding: bytes) -> int:
    match encoding:
        case b"gzip" | b"x-gzip":
            return _GZIP_BITS
        case b"deflate":
            # By RFC 9110 it is zlib's format (RFC 1950), but some clients send the data without zlib's head.
            has_head = len(body) > 1 and body[0] & 15 == zlib.DEFLATED and (256 * body[0] + body[1]) % 31 == 0
            return zlib.MAX_WBITS if has_head else -zlib.MAX_WBITS
        case _:
            raise Refusal(
                415,
                f"Content-Encoding {reprlib.repr(encoding.decode('latin-1'))} is not known; gzip and deflate are, or "
                "send the body as it is",
                ((b"accept-encoding", b"gzip, deflate"),),
            )
