"""Step 3: assumptions that nothing tells are tried on images; `assumptions.settling` is the entry."""
