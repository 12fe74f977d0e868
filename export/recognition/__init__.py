"""Step 2: the network that tensors are, recognised by `fuseline.export.recognition.architectures`."""
