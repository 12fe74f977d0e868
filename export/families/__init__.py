"""The networks that are recognised from tensors, and their names in code: see `fuseline.export.architectures`."""
