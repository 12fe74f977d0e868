"""What code calls the tensors of a network: the table of schemes, and names that tell by what repeats in them."""
