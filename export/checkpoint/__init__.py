"""Step 1: from a file of any kind to named tensors, with nothing in it run; `checkpoint.checkpoint` is the door."""
