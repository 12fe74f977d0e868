"""From what the user points at to a trained network: recognised, renamed, with another head, or built by a factory."""
