"""Step 4: a trained network as a flat graph, with BatchNorm and input scaling folded into its layers."""
