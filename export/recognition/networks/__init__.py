"""The networks that names lead to, as modules, and the specs that they are built from."""
