"""Turns requests into batches: admission, the queue, and the thread that computes."""
