"""The trained network that the user points at: recognised, renamed, with another head, or built by a factory."""
