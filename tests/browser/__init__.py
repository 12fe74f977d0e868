"""The server's page in a real browser: `make browser-test` runs these checks, `make test` doesn't."""
