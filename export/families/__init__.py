"""The networks that are recognised from tensors, and the names that code gives them; see `fuseline.export.architectures`."""
