"""What replicas cost at a price an hour."""

from dataclasses import dataclass

HOURS_A_MONTH = 365.25 * 24 / 12


@dataclass(frozen=True, slots=True)
class Cost:
    """In the price's own currency."""

    hour: float
    month: float
    million_pictures: float
    """At the rate that was asked for, all hours long."""


def cost_of(replicas: int, price_per_hour: float, pictures_per_s: float) -> Cost:
    """Return what `replicas` cost that take `pictures_per_s`, each at `price_per_hour`."""
    hour = replicas * price_per_hour
    return Cost(hour, hour * HOURS_A_MONTH, hour / (pictures_per_s * 3600) * 1e6)
