"""Documents as the text of one YAML file."""

from collections.abc import Iterable, Sequence
from typing import Any

import yaml


def yaml_text(documents: Iterable[Any], comment: Sequence[str] = ()) -> str:
    """Return `documents` as YAML, fields in their order, below `comment`, of which each line is a comment.

    What `yaml.safe_load_all` reads of it equals `documents`, whatever their strings hold. So it is ASCII: PyYAML would
    write some line separators as they are, and read them as spaces.
    """
    head = "".join(f"# {line}".rstrip() + "\n" for line in comment)
    parts = [yaml.dump(document, Dumper=_Dumper, sort_keys=False) for document in documents]
    return head + "---\n".join(parts)


class _Dumper(yaml.SafeDumper):  # type: ignore[misc]
    """Writes lists indented, and nothing by reference."""

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:  # noqa: ARG002
        super().increase_indent(flow, False)

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002
        return True
