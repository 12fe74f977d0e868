"""Builds, keeps and inspects TensorRT engines, with neither torch nor onnx."""
