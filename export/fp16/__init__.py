"""The FP16 graph, which can't overflow in silence; `fp16.mixed_precision` is the door."""
