"""TensorRT engines: built, kept, inspected; neither torch nor onnx is needed."""
