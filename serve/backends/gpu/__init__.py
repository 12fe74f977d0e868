"""NVIDIA GPUs: the driver, and memory, streams and graphs of CUDA."""
