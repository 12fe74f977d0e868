"""`python -m export`."""

from fuseline.export.cli import main

main()
