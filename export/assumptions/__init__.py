"""Step 3: assumptions, tried on images where nothing tells; `fuseline.export.assumptions.settling` is the entry."""
