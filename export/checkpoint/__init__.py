"""Step 1: named tensors of any file, none of whose code is run, read by `fuseline.export.checkpoint.checkpoint`."""
