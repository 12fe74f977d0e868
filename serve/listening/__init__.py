"""Where a server listens: addresses, Unix sockets and their files, and what binds gRPC to them."""
