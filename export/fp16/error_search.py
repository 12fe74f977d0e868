"""Which of many layers together move the logits too far: found by trying ever smaller groups."""

from collections.abc import Callable, Sequence

_MOST_ROUNDS = 8


def layers_that_disturb(
    layers: Sequence[str],
    *,
    alone: Callable[[Sequence[str]], float],
    without: Callable[[Sequence[str]], float],
    tolerance: float,
) -> dict[str, float]:
    """The layers that must leave so that the rest deviates by at most `tolerance`, and what each does by itself.

    A group that by itself stays within its budget is let off without trying its layers, so a few culprits among many
    layers take a few tries for each. Many small errors may add up where none is beyond the budget: then it is halved,
    until the worst of them are found. In the end all of `layers` leave.

    Args:
        layers: in running order, so that a value's producer and its readers come into one group.
        alone: the deviation with only these layers in FP16.
        without: the deviation with these layers left out.
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
