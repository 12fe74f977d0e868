"""`fuseline token new`, and `fuseline classify` with what it made."""

import re
from pathlib import Path

from fuseline.serve.access.token_file import digest_of, read_token_file, token_lines
from tests.commands import Run


def test_a_new_token_is_printed_once_and_the_file_gets_its_hash(run_fuseline: Run, tmp_path: Path) -> None:
    file = tmp_path / "hashes"
    code, out, err = run_fuseline("token", "new", "--name", "web-shop", "--file", file)
    assert (code, err) == (0, "")
    (token,) = out.split()
    code, out, _ = run_fuseline(
        "token", "new", "--name", "deployer", "--role", "admin", "--file", file, "--expires-days", 30
    )
    (other,) = out.split()
    lines = token_lines(read_token_file(file), file)
    assert [(line.name, line.role, line.digest) for line in lines] == [
        ("web-shop", "infer", digest_of(token)),
        ("deployer", "admin", digest_of(other)),
    ]
    assert lines[0].expires is None
    assert lines[1].expires is not None
    assert token not in file.read_text()


def test_without_a_file_the_line_goes_to_stderr(run_fuseline: Run) -> None:
    code, out, err = run_fuseline("token", "new", "--name", "web-shop")
    assert code == 0
    assert re.fullmatch(r"fuseline_\S{43}\n", out)
    (line,) = token_lines(err.partition(": ")[2].encode(), Path("stderr"))
    assert line.digest == digest_of(out.strip())


def test_a_wrong_role_or_name_or_a_file_of_something_else_is_2(run_fuseline: Run, tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    notes.write_text("buy milk\n")
    for arguments in (("--name", "x", "--role", "root"), ("--name", "a b"), ("--name", "x", "--file", notes)):
        code, out, err = run_fuseline("token", "new", *arguments)
        assert (code, out) == (2, "")
        assert err.startswith("error: ")
        assert err.count("\n") == 1
    assert notes.read_text() == "buy milk\n"
