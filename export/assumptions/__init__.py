"""Step 3: what nothing tells is asked of images; `assumptions.settling` is the door."""
