"""The activations that published code has in the place of He et al.'s ReLU."""

from collections.abc import Callable
from functools import partial

from torch import Tensor
from torch.nn import functional as F

from fuseline.export.recognition.networks.resnet_spec import Activation

ACTIVATIONS: dict[Activation, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "relu6": F.relu6,
    "leaky-relu": F.leaky_relu,
    "leaky-relu-0.1": partial(F.leaky_relu, negative_slope=0.1),
    "elu": F.elu,
    "celu": F.celu,
    "selu": F.selu,
    "gelu": F.gelu,
    "silu": F.silu,
    "mish": F.mish,
    "hardswish": F.hardswish,
    "tanh": F.tanh,
}
