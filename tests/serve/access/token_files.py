"""Files of token hashes for tests, and the tokens that they know."""

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


def bearer(token: str) -> tuple[tuple[str, str], ...]:
    """Metadata of a gRPC call with `token`."""
    return (("authorization", f"Bearer {token}"),)
