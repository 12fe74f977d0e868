"""The search for the layers that together move the logits too far, by trying ever smaller groups."""

from collections.abc import Callable, Sequence

_MOST_ROUNDS = 8


def layers_that_disturb(
    layers: Sequence[str],
    *,
    alone: Callable[[Sequence[str]], float],
    without: Callable[[Sequence[str]], float],
    tolerance: float,
) -> dict[str, float]:
    """Return the layers that must leave FP16 so that the rest deviates by at most `tolerance`: layer -> own deviation.

    The layers of a group that by itself stays within its budget aren't tried, so that a few culprits among many layers
    take a few tries each. Many small errors may add up although none is beyond the budget; the budget is then halved
    until the worst of them are found. If that never suffices, all of `layers` leave.

    Args:
        layers: layers in running order, so that a value's producer and its readers come into one group.
        alone: returns the deviation with only these layers in FP16.
        without: returns the deviation with all but these layers in FP16.
    """
    tried: dict[tuple[str, ...], float] = {}

    def search(group: Sequence[str], budget: float) -> dict[str, float]:
        key = tuple(group)
        if key not in tried:
            tried[key] = alone(group)
        if tried[key] <= budget:
            return {}
        if len(group) == 1:
            return {group[0]: tried[key]}
        middle = len(group) // 2
        return search(group[:middle], budget) | search(group[middle:], budget)

    budget = tolerance
    for _ in range(_MOST_ROUNDS):
        budget /= 2
        found = search(layers, budget)
        if without(list(found)) <= tolerance:
            return found
    return {layer: alone([layer]) for layer in layers}
