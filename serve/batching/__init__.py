"""Requests become batches: the queue, who is admitted to it, and the thread that computes."""
