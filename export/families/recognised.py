"""A network recognised from a checkpoint's tensors."""

from dataclasses import dataclass

from fuseline.export.families.plain_network import PlainSpec
from fuseline.export.families.resnet_spec import ResNetSpec
from fuseline.export.network import TrainedNetwork

Spec = ResNetSpec | PlainSpec


@dataclass(frozen=True, kw_only=True)
class Recognised(TrainedNetwork):
    """A network recognised from its tensors, whose memory its weights share."""

    spec: Spec
    naming: str
    """Name of the naming scheme, as `--naming` takes it."""
