"""The names of a network's tensors: the table of naming schemes, and names read by what repeats in them."""
