"""The networks that can be recognised, as modules, and the specs that they are built from."""
