"""Stand-ins for what a test can't hold or break in the real thing, and tiny real things beside them."""
