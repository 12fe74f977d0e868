"""Serves from several processes: front ends that share the gRPC port, and a backend process with models and batchers.

    supervisor ──starts, drains, restarts──▶ worker × N   gRPC, decoding, validation
        │                                      │ pixels in shared memory, small records over a Unix socket
        └──────────starts, restarts──────────▶ backend    models, batchers, the device

A worker owns the shared memory that its requests lie in, and hands the backend a descriptor of it. So workers share
nothing with each other, and the kernel frees what a dead process held.
"""
