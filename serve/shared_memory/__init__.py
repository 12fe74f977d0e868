"""Regions of memory that a client on this machine shares with the server, by Triton's shared-memory extensions.

A client registers a region under a name; its requests then say where in it their tensors lie, and no pixel crosses a
socket. Regions are copied from and into, never mapped: a client may change or shrink its memory at any time, and what
was copied is what is checked.
"""
