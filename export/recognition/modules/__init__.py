"""What a module at hand does with images: sizes that it takes, and whether it gives logits."""
