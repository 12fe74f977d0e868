"""More than one process: front ends that share the gRPC port, and one backend process that owns models and batchers.

    supervisor ──starts, drains, restarts──▶ worker × N   gRPC, decoding, validation
        │                                      │ pixels in shared memory, small records over a Unix socket
        └──────────starts, restarts──────────▶ backend    models, batchers, the device

A worker owns the shared memory that its requests lie in and hands the backend a descriptor of it, so nothing is shared
between workers, and the kernel frees what a dead process held.
"""
