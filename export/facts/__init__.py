"""What tensors alone don't say: labels, normalisation, input size."""
