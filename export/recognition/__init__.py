"""Step 2: which network tensors are, told from their names and shapes; `recognition.architectures` is the door."""
