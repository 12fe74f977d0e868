"""Signs that a state dict belongs to a quantised network, whose numbers are no float weights."""

from collections.abc import Iterable

# A part of a name -> the tool that writes such a tensor beside or instead of a weight.
_TOOLS = {
    "_packed_params": "PyTorch's quantisation",
    "absmax": "bitsandbytes",
    "quant_map": "bitsandbytes",
    "SCB": "bitsandbytes",
    "qweight": "GPTQ or AWQ",
    "qzeros": "GPTQ or AWQ",
    "weight_scale_inv": "FP8 quantisation",
}
_FAKE_QUANTISATION = ("weight_fake_quant", "activation_post_process")


def quantisation_in(names: Iterable[str], module_classes: Iterable[str] = ()) -> str | None:
    """Return what shows that the network was quantised, for a message; None if nothing does."""
    known = set(names)
    for name in sorted(known):
        parts = name.split(".")
        for part in parts:
            if part in _TOOLS or part.startswith("bitsandbytes__"):
                return f"`{name}` is written by {_TOOLS.get(part, 'bitsandbytes')}"
            if part in _FAKE_QUANTISATION:
                return f"`{name}` is written by quantisation-aware training"
        if parts[-1] == "scale" and ".".join([*parts[:-1], "zero_point"]) in known:
            return f"`{name}` comes with a zero point"
    quantised = sorted(name for name in module_classes if ".quantized." in name)
    return f"its layers are of {quantised[0]}" if quantised else None
