"""What a checkpoint of whole modules says of its layers."""

from torch import nn


def settings_of(network: nn.Module) -> dict[str, dict]:
    """Every layer's plain attributes and the name of its class, as a reader of whole modules gives them."""
    return {
        name: {"type": type(child).__name__}
        | {key: value for key, value in vars(child).items() if isinstance(value, int | float | tuple | str)}
        for name, child in network.named_modules()
        if name
    }
