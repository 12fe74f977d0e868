"""From a file of any kind to named tensors, with nothing in it run; `fuseline.export.checkpoint` is the door."""
