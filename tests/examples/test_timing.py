"""The demo's timing."""

import importlib

import numpy as np
import pytest


def test_timing_checks_the_answers_that_it_times():
    timing = importlib.import_module("timing")
    expected = np.array([3, 1, 4])

    def contender(name, one, offset=0):
        return timing.Contender(name, one, lambda positions: expected[list(positions)] + offset, many=2)

    def one(positions):
        return expected[list(positions)]

    right = contender("right", one)
    timing.time_in_turns([right], expected, rounds=2, stretch_s=0.001, on_stretch_done=lambda: None)
    assert len(right.latencies_ms) == len(right.images_per_s) == 2
    throughput_only = contender("throughput only", None)
    timing.time_in_turns([throughput_only], expected, rounds=1, stretch_s=0.001, on_stretch_done=lambda: None)
    assert (throughput_only.latencies_ms, len(throughput_only.images_per_s)) == ([], 1)
    wrong = contender("wrong", one, offset=1)
    with pytest.raises(RuntimeError, match="wrong answered"):
        timing.time_in_turns([wrong], expected, rounds=1, stretch_s=0.001, on_stretch_done=lambda: None)
