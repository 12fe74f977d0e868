"""What `fuseline inspect` finds out and how it is shown; `fuseline.export.inspection` is the door."""
