"""The INT8 graph: calibrated, quantised, held against its bar; `export.int8.int8_graph` is the door."""
