"""Files laid out over parts."""

from hypothesis import given
from hypothesis import strategies as st

from deploy.gpu_bundle.parts import Chunk, lay_out


def test_what_fits_stays_whole_and_what_goes_over_the_end_is_cut() -> None:
    assert lay_out([("small", 30), ("large", 150), ("last", 20)], "part", first=2, limit=100) == [
        Chunk("small", "part-2", "small", 0, 30),
        Chunk("large", "part-2", "large.1-of-2", 0, 70),
        Chunk("large", "part-3", "large.2-of-2", 70, 80),
        Chunk("last", "part-3", "last", 0, 20),
    ]


def test_a_file_that_fills_a_part_to_the_end_is_not_cut() -> None:
    chunks = lay_out([("a", 100), ("b", 1)], "part", limit=100)
    assert [(chunk.part, chunk.stored_as) for chunk in chunks] == [("part-1", "a"), ("part-2", "b")]


@given(st.lists(st.integers(0, 400), max_size=12), st.integers(1, 150))
def test_every_byte_is_in_one_chunk_and_no_part_is_too_large(sizes: list[int], limit: int) -> None:
    files = [(f"file{index}", size) for index, size in enumerate(sizes)]
    chunks = lay_out(files, "part", limit=limit)
    for name, size in files:
        ends = 0
        of_file = [chunk for chunk in chunks if chunk.file == name]
        assert of_file
        for chunk in of_file:
            assert chunk.offset == ends
            ends += chunk.size
        assert ends == size
    parts: dict[str, int] = {}
    for chunk in chunks:
        parts[chunk.part] = parts.get(chunk.part, 0) + chunk.size
    assert all(size <= limit for size in parts.values())
    # As few parts as can be.
    assert len(parts) <= max(1, -(-sum(sizes) // limit)) + (0 in sizes)
    assert len({(chunk.part, chunk.stored_as) for chunk in chunks}) == len(chunks)
