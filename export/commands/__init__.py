"""The command lines of export, convert and inspect."""
