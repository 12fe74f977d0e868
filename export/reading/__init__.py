"""From a file of whatever kind to named tensors, without running anything in it; `export.checkpoint` is the door."""
