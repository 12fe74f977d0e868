"""Step 5: a folded network as an ONNX graph, and the operations of such a graph."""
