"""NVIDIA GPUs: their driver, and memory, streams and graphs of CUDA."""
