"""The arguments of those ATen operators, by name, that our networks and their like call.

The names and defaults are those of aten/src/ATen/native/native_functions.yaml.
"""

from collections.abc import Mapping
from typing import Any

from fuseline.export.program import Call

_CONV = (("input", "weight", "bias"), {"stride": 1, "padding": 0, "dilation": 1, "groups": 1})
# Operator -> names of the arguments without a default, and the other arguments with theirs.
_SIGNATURES: dict[str, tuple[tuple[str, ...], Mapping[str, Any]]] = {
    "conv2d": _CONV,
    "_convolution_mode": _CONV,
    "_convolution": (
        ("input", "weight", "bias", "stride", "padding", "dilation", "transposed", "output_padding", "groups"),
        {"benchmark": False, "deterministic": False, "cudnn_enabled": True, "allow_tf32": True},
    ),
    "batch_norm": (
        ("input", "weight", "bias", "running_mean", "running_var", "training", "momentum", "eps"),
        {"cudnn_enabled": True},
    ),
    "linear": (("input", "weight"), {"bias": None}),
    "addmm": (("bias", "input", "weight"), {"beta": 1, "alpha": 1}),  # a linear layer in traces before PyTorch 1.9
    "max_pool2d": (("input", "kernel_size"), {"stride": (), "padding": 0, "dilation": 1, "ceil_mode": False}),
    "avg_pool2d": (
        ("input", "kernel_size"),
        {"stride": (), "padding": 0, "ceil_mode": False, "count_include_pad": True, "divisor_override": None},
    ),
    "adaptive_avg_pool2d": (("input", "output_size"), {}),
    "mean": (("input",), {"dim": None, "keepdim": False, "dtype": None}),
    "flatten": (("input",), {"start_dim": 0, "end_dim": -1}),
    "slice": (("input",), {"dim": 0, "start": None, "end": None, "step": 1}),
    "pad": (("input", "pad"), {"mode": "constant", "value": None}),
    "constant_pad_nd": (("input", "pad"), {"value": 0}),
    "add": (("input", "other"), {"alpha": 1}),
    "mul": (("input", "other"), {}),
    "clamp_min": (("input", "min"), {}),
    "clamp": (("input",), {"min": None, "max": None}),
    "hardtanh": (("input",), {"min_val": -1, "max_val": 1}),
    "leaky_relu": (("input",), {"negative_slope": 0.01}),
    "elu": (("input",), {"alpha": 1, "scale": 1, "input_scale": 1}),
    "gelu": (("input",), {"approximate": "none"}),
    "softmax": (("input", "dim"), {"dtype": None}),
    "log_softmax": (("input", "dim"), {"dtype": None}),
    "zeros": (("size",), {}),
}


def arguments_of(call: Call) -> dict[str, Any]:
    """Return all arguments of `call` by name; {} if its operator isn't known here or is called in another form."""
    if call.operator not in _SIGNATURES:
        return {}
    required, optional = _SIGNATURES[call.operator]
    names = (*required, *optional)
    given = dict(zip(names, call.arguments, strict=False)) | dict(call.keywords)
    is_whole = len(call.arguments) <= len(names) and all(name in given for name in required)
    return {**optional, **given} if is_whole else {}
