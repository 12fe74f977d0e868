"""From a file of whatever kind to named tensors, without running anything in it; `fuseline.export.checkpoint` is the door."""
