"""Which of two media types a client would rather have."""


def prefers(accept: str, wanted: str, default: str) -> bool:
    """Return whether a client with this header Accept takes `wanted`, and no less gladly than `default`.

    One that doesn't name it, as `*/*`, gets the default.
    """
    weights = {default: 0.0, wanted: 0.0}
    for part in accept.split(","):
        media_type, *parameters = (piece.strip() for piece in part.lower().split(";"))
        if media_type in weights:
            weights[media_type] = max(weights[media_type], _weight(parameters))
    return weights[wanted] > 0 and weights[wanted] >= weights[default]


def _weight(parameters: list[str]) -> float:
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name.strip() == "q":
            try:
                return float(value)
            except ValueError:
                return 0.0
    return 1.0
