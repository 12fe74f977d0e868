"""`python -m export`."""

from fuseline.export.commands.export_command import main

main()
