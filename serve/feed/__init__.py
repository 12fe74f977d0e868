"""What a server tells, as it happens, of its batches and requests to whoever watches; while nobody does, nothing."""
