"""A network recognised from a checkpoint's tensors."""

from dataclasses import dataclass

from fuseline.export.network import TrainedNetwork
from fuseline.export.recognition.networks.plain_network import PlainSpec
from fuseline.export.recognition.networks.resnet_spec import ResNetSpec

Spec = ResNetSpec | PlainSpec


@dataclass(frozen=True, kw_only=True)
class Recognised(TrainedNetwork):
    """A network recognised from its tensors; its weights share their memory."""

    spec: Spec
    naming: str
    """Name of the naming scheme, as `--naming` takes it."""
