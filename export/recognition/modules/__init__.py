"""What a module does with images: the sizes that it takes, and whether it returns logits."""
