"""What `fuseline inspect` finds out, and how it is shown."""
