"""Step 2: the network that tensors are, by their names and shapes; `recognition.architectures` is the entry."""
