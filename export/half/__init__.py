"""A network in FP16 that can't overflow in silence; `fuseline.export.half.overflow_guard` is the door."""
