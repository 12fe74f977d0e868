"""Programs of operator calls, held against recognised networks."""
