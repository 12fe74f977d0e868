"""The INT8 graph: calibrated, quantised, held against its bar; `int8.int8_graph` is the door."""
