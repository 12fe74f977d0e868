"""The search for culprits on made-up errors, which add up as independent ones do."""

import math

import pytest

from fuseline.export.fp16.error_search import layers_that_disturb

LAYERS = [f"layer{number}" for number in range(64)]


def found(errors: dict[str, float], tolerance: float = 0.02) -> tuple[dict[str, float], int]:
    tries = 0

    def alone(group) -> float:
        nonlocal tries
        tries += 1
        return math.hypot(*(errors.get(layer, 1e-4) for layer in group))

    def without(left) -> float:
        return alone([layer for layer in LAYERS if layer not in left])

    return layers_that_disturb(LAYERS, alone=alone, without=without, tolerance=tolerance), tries


@pytest.mark.parametrize("culprits", [["layer0"], ["layer17"], ["layer63", "layer5"], ["layer20", "layer21"]])
def test_culprits_are_found_with_their_figures_and_few_tries(culprits: list[str]) -> None:
    result, tries = found(dict.fromkeys(culprits, 0.3))
    assert result == dict.fromkeys(culprits, 0.3)
    assert tries <= 2 + 12 * len(culprits)


def test_infinite_errors_are_found_too() -> None:
    assert found({"layer40": math.inf})[0] == {"layer40": math.inf}


def test_many_small_errors_are_thinned_out_from_the_largest() -> None:
    errors = dict.fromkeys(LAYERS[:40], 0.003) | dict.fromkeys(LAYERS[40:50], 0.006)
    assert math.hypot(*errors.values()) > 0.02
    result, _ = found(errors)
    assert set(result) >= set(LAYERS[40:50])
    assert math.hypot(*(error for layer, error in errors.items() if layer not in result)) <= 0.02


def test_in_the_end_all_leave() -> None:
    result = layers_that_disturb(
        LAYERS[:4], alone=lambda group: 1e-9, without=lambda left: 1.0 if len(left) < 4 else 0.0, tolerance=0.02
    )
    assert list(result) == LAYERS[:4]
