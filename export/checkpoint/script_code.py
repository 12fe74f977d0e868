"""The code of a TorchScript archive as syntax trees; it is parsed within bounds, and never run.

TorchScript writes classes and functions as Python text, a file for each module
(torch/csrc/jit/serialization/python_print.cpp): `__torch__.a.b.Name` is in `code/__torch__/a/b.py`.
"""

import ast
from collections.abc import Callable, Mapping
from typing import Any

_MAX_CODE_BYTES = 2**20
"""Largest size of all files that are read. A traced ResNet-152 has 280 KB; a tree may take 500 times its text."""
_MAX_FILE_BYTES = 2**19
_MAX_LINE_BYTES = 20_000


class UnreadableError(Exception):
    """The program can't be read to its end; the text says where and why."""


class ScriptCode:
    """Classes and functions by their full names; a file is parsed when a name in it is first needed.

    Args:
        sizes: file name within the archive (`code/__torch__.py`) to its size in bytes, as the archive lists it.
        read: returns the text of such a file, of no more bytes than are listed, or raises `ValueError`.
    """

    def __init__(self, sizes: Mapping[str, int], read: Callable[[str], bytes]) -> None:
        self._sizes = sizes
        self._read = read
        self._parsed: dict[str, dict[str, ast.ClassDef | ast.FunctionDef]] = {}
        self._bytes = 0

    def function(self, name: str) -> ast.FunctionDef | None:
        """Return the function of the full name `name`; None if there is none."""
        found = self._definition(name)
        return found if isinstance(found, ast.FunctionDef) else None

    def method(self, class_name: str, name: str) -> ast.FunctionDef | None:
        """Return the method `name` of a class; None if there is none."""
        return next(
            (part for part in self._body(class_name) if isinstance(part, ast.FunctionDef) and part.name == name), None
        )

    def constant(self, class_name: str, name: str) -> ast.expr | None:
        """Return the value that a class gives its attribute `name`, as in `eps : Final[float] = 1e-05`, or None."""
        for part in self._body(class_name):
            if isinstance(part, ast.AnnAssign) and isinstance(part.target, ast.Name) and part.target.id == name:
                return part.value
        return None

    def _body(self, class_name: str) -> list[Any]:
        found = self._definition(class_name)
        return found.body if isinstance(found, ast.ClassDef) else []

    def _definition(self, name: str) -> ast.ClassDef | ast.FunctionDef | None:
        module, _, last = name.rpartition(".")
        file = f"code/{module.replace('.', '/')}.py"
        if file not in self._parsed:
            self._parsed[file] = self._definitions(file) if file in self._sizes else {}
        return self._parsed[file].get(last)

    def _definitions(self, file: str) -> dict[str, ast.ClassDef | ast.FunctionDef]:
        size = self._sizes[file]
        self._bytes += size
        if size > _MAX_FILE_BYTES or self._bytes > _MAX_CODE_BYTES:
            raise UnreadableError(f"{file} has {size} bytes, which is more code than is read")
        try:
            text = self._read(file)
            if any(len(line) > _MAX_LINE_BYTES for line in text.splitlines()):
                raise ValueError(f"a line is longer than {_MAX_LINE_BYTES} bytes")
            # Since Python 3.11 the parser itself rejects text that nests too deeply.
            tree = ast.parse(text.decode("utf-8"), mode="exec")
        except (ValueError, SyntaxError, RecursionError, MemoryError) as error:
            raise UnreadableError(f"{file} can't be parsed ({type(error).__name__}: {str(error)[:100]})") from error
        return {part.name: part for part in tree.body if isinstance(part, ast.ClassDef | ast.FunctionDef)}
