"""The files of the page, as they are sent."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

INDEX = "index.html"

_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
}

_STRICT = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
    "frame-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""What the page may do (Content Security Policy Level 3): nothing that is not its own file."""

_REPORT_FRAME = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src data:; frame-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'self'"
)
"""What the frame may do that shows a package's report, whose styles are within it. No script of a report ever runs: it
is in a frame of its own that has no right to."""

_POLICIES = {"report.html": _REPORT_FRAME}


@dataclass(frozen=True, slots=True)
class PageFile:
    """One file of the page."""

    content: bytes
    headers: Mapping[str, str]
    """Header fields that it is sent with."""
    tag: str
    """Its entity tag (RFC 9110, 8.8.3)."""


@cache
def page_files() -> Mapping[str, PageFile]:
    """Return the files of the page by their name."""
    folder = Path(__file__).parent / "page"
    return {path.name: _page_file(path) for path in sorted(folder.iterdir()) if path.suffix in _TYPES}


def _page_file(path: Path) -> PageFile:
    content = path.read_bytes()
    tag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
    headers = {
        "Content-Type": _TYPES[path.suffix],
        "Content-Security-Policy": _POLICIES.get(path.name, _STRICT),
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cross-Origin-Opener-Policy": "same-origin",
        "Cross-Origin-Resource-Policy": "same-origin",
        # A server of another version may answer on the same address the next minute.
        "Cache-Control": "no-cache",
        "ETag": tag,
    }
    return PageFile(content, headers, tag)
