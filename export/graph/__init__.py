"""Step 5: a folded network as an ONNX graph, the operations of such a graph, and graphs run in memory."""
