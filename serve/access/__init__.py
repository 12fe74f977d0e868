"""Who may call: bearer tokens from a file of hashes, and the role that each method needs."""
