"""Tokens, and the file of their hashes."""

import re
from datetime import UTC, datetime
from pathlib import Path

import pytest

from fuseline.serve.access.roles import Role
from fuseline.serve.access.token_file import add_line, digest_of, new_token, read_token_file, token_line, token_lines
from fuseline.serve.errors import InputError

PATH = Path("hashes")
HASH = "sha256:" + "0f" * 32


def lines_of(text: str) -> tuple[object, ...]:
    return token_lines(text.encode(), PATH)


def test_a_token_has_256_random_bits_and_a_beginning_that_scanners_find() -> None:
    tokens = {new_token() for _ in range(100)}
    assert len(tokens) == 100
    # 43 characters of 6 bits, of which the last one has 4.
    assert all(re.fullmatch(r"fuseline_[A-Za-z0-9_-]{43}", token) for token in tokens)
    assert len({digest_of(token) for token in tokens}) == 100


@pytest.mark.parametrize("word", ["", "password", "fuseline_", "fuseline_" + "a" * 42, "fuseline_" + "é" * 43])
def test_a_word_that_someone_chose_is_no_token_whatever_its_hash_is_in_the_file(word: str) -> None:
    assert digest_of(word) is None


def test_a_written_line_is_read_as_it_was_meant() -> None:
    expires = datetime(2027, 1, 31, tzinfo=UTC)
    line = token_line(new_token(), name="web-shop", role="infer", expires=expires)
    assert token_lines(f"# who   what\n\n{line}\r\n".encode(), PATH) == (line,)
    assert (line.role, line.expires) == (Role.INFER, expires)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "has no token; `fuseline token new"),
        ("# nothing\n", "has no token"),
        ("shop infer", "line 1 .* expected NAME ROLE sha256:HASH"),
        (f"shop infer {HASH} 2027-01-31T00:00:00+00:00 more", "expected NAME ROLE"),
        (f"\nshop root {HASH}", "line 2 .* role must be infer or admin"),
        (f"shop infer {HASH[:-1]}", "expected NAME ROLE sha256:HASH"),
        (f"sh/op infer {HASH}", "a name has 1 to 64"),
        (f"shop infer {HASH} tomorrow", "none of ISO 8601"),
        (f"shop infer {HASH} 2027-01-31T00:00:00", "has no offset"),
        (f"shop infer {HASH}\nother admin {HASH}", "line 2 .* hash is that of an earlier line"),
        ("\udc80".encode("utf-8", "surrogateescape").decode("latin-1"), "line 1"),
    ],
)
def test_a_line_that_is_none_is_refused_by_its_number_and_reason(text: str, reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        lines_of(text)


def test_a_token_that_was_put_into_the_file_by_mistake_is_not_told() -> None:
    token = new_token()
    for text in (
        token,
        f"shop infer {token}",
        f"{token} infer {HASH}",
        f"shop {token} {HASH}",
        f"a infer {HASH} {token}",
    ):
        with pytest.raises(InputError) as caught:
            lines_of(text)
        assert token[9:20] not in str(caught.value)


def test_bytes_that_are_no_text_and_files_that_are_too_large_or_missing_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no UTF-8 text"):
        token_lines(b"\xff", PATH)
    large = tmp_path / "large"
    large.write_bytes(bytes(2**18 + 1))
    with pytest.raises(InputError, match="more than 262144 bytes"):
        read_token_file(large)
    with pytest.raises(InputError, match="can't be read: No such file"):
        read_token_file(tmp_path / "missing")
    with pytest.raises(InputError, match="can't be read: Is a directory"):
        read_token_file(tmp_path)


def test_a_line_is_added_by_renaming_and_the_files_mode_is_kept(tmp_path: Path) -> None:
    file = tmp_path / "hashes"
    first, second = (token_line(new_token(), name="shop", role="infer") for _ in range(2))
    add_line(file, first)
    assert file.stat().st_mode & 0o777 == 0o600
    file.chmod(0o640)
    before = file.stat().st_ino
    file.write_text(file.read_text().rstrip("\n"))
    add_line(file, second)
    assert token_lines(read_token_file(file), file) == (first, second)
    assert file.stat().st_mode & 0o777 == 0o640
    assert file.stat().st_ino != before
    assert list(tmp_path.iterdir()) == [file]


def test_a_file_of_something_else_is_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "notes"
    file.write_text("buy milk\n")
    with pytest.raises(InputError, match="line 1"):
        add_line(file, token_line(new_token(), name="shop", role="infer"))
    assert file.read_text() == "buy milk\n"
    # A comment that no server could read is one too, though no line of it has a token.
    file.write_bytes(b"# caf\xe9\n")
    with pytest.raises(InputError, match="no UTF-8"):
        add_line(file, token_line(new_token(), name="shop", role="infer"))
    assert file.read_bytes() == b"# caf\xe9\n"


def test_a_wrong_name_or_role_makes_no_line() -> None:
    with pytest.raises(InputError, match="role must be infer or admin"):
        token_line(new_token(), name="shop", role="root")
    with pytest.raises(InputError, match="a name has"):
        token_line(new_token(), name="the shop", role="infer")
