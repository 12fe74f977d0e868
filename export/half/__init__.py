"""A network in FP16 that can't overflow in silence; `export.half.overflow_guard` is the door."""
