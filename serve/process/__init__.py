"""The process of a server: its CPU, memory, files, signals, event loop and log."""
