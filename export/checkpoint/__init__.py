"""Step 1: the named tensors of a file of any kind, none of whose code is run; `checkpoint.checkpoint` is the entry."""
