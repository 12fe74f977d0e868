"""What the documentation says of checkpoints is what the code does, and its links lead somewhere."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_table_has_every_naming_scheme_and_no_other() -> None:
    from fuseline.export.recognition.naming.naming_schemes import COMPOSED, SCHEMES

    page = (ROOT / "docs" / "checkpoints.md").read_text()
    rows = re.findall(r"^\| (`[^|]+) \| [^|]+ \| ✓ \|$", page, flags=re.MULTILINE)
    named = {name for row in rows for name in re.findall(r"`([^`]+)`", row) if not name.startswith("--")}
    assert named == {scheme.name for scheme in SCHEMES} | set(COMPOSED)


def test_links_lead_to_files() -> None:
    for page in (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("*/README.md")):
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
