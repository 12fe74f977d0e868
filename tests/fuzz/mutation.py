"""Broken inputs, made of sound ones."""

import random
from collections.abc import Sequence

MOST_BYTES = 2**20

_NUMBERS = (
    b"\x00",
    b"\xff",
    b"\x7f\xff\xff\xff",
    b"\xff\xff\xff\xff",
    b"\x80\x00\x00\x00",
    b"\x00\x00\x00\x00\x00\x00\x00\x80",
)


def mutated(seeds: Sequence[bytes], random: random.Random) -> bytes:
    """One of `seeds` with a few changes: bytes flipped, replaced, cut out, repeated, or taken from another seed."""
    data = bytearray(random.choice(seeds))
    for _ in range(random.choice((1, 1, 2, 3, 8, 40))):
        at = random.randrange(len(data) + 1)
        match random.randrange(7):
            case 0 if at < len(data):
                data[at] ^= 1 << random.randrange(8)
            case 1:
                number = random.choice(_NUMBERS)
                data[at : at + len(number)] = number
            case 2:
                del data[at : at + random.choice((1, 4, 100, 10_000))]
            case 3:
                part = bytes(data[at : at + random.choice((1, 8, 200))])
                data[at:at] = part * random.choice((1, 2, 50))
            case 4:
                other = random.choice(seeds)
                begin = random.randrange(len(other) + 1)
                data[at:] = other[begin:]
            case 5:
                data[at:at] = random.randbytes(random.choice((1, 4, 64)))
            case _:
                del data[at:]
    return bytes(data[:MOST_BYTES])
