"""What `fuseline inspect` finds, and how it is shown."""
