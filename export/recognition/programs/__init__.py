"""Programs of operator calls, compared with recognised networks."""
