"""Which of several servers a request goes to: plain state and numbers, with the time as an argument.

The clients decide by it, and so does a simulation on virtual time.
"""
