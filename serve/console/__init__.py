"""The page of a running server, and what only the page asks for."""
