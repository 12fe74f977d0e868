"""Files of token hashes for tests, and the tokens that they know."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fuseline.serve.access.token_file import add_line, new_token, token_line


@dataclass(frozen=True)
class TokenFile:
    """A file that knows one token of each role."""

    path: Path
    infer: str
    admin: str


def written_token_file(folder: Path) -> TokenFile:
    """Write the file, in which `shop` may infer and `deployer` may do all."""
    file = TokenFile(folder / "hashes", new_token(), new_token())
    add_line(file.path, token_line(file.infer, name="shop", role="infer"))
    add_line(file.path, token_line(file.admin, name="deployer", role="admin"))
    return file


def change(file: TokenFile, edit: Callable[[str], str | None]) -> None:
    """Replace the file, by renaming, with what `edit` makes of each of its lines; None leaves one out."""
    edited = [edit(line) for line in file.path.read_text().splitlines()]
    following = file.path.with_name("following")
    following.write_text("".join(f"{line}\n" for line in edited if line is not None))
    following.replace(file.path)


def withdraw(file: TokenFile, name: str) -> None:
    """Remove the lines of `name`."""
    change(file, lambda line: None if line.startswith(f"{name} ") else line)


def bearer(token: str) -> tuple[tuple[str, str], ...]:
    """Metadata of a gRPC call with `token`."""
    return (("authorization", f"Bearer {token}"),)
