"""A recognised network under another naming scheme's names."""

from collections.abc import Iterator

from torch import Tensor

from fuseline.export.recognition.architecture_names import name_of
from fuseline.export.recognition.naming.naming_schemes import NamingScheme
from fuseline.export.recognition.naming.placement import module_names
from fuseline.export.recognition.networks.plain_network import PlainSpec
from fuseline.export.recognition.networks.resnet_spec import PreActResNetSpec
from fuseline.export.recognition.recognised import Recognised, Spec
from fuseline.serve.errors import ArchitectureError


def names_in(scheme: NamingScheme, recognised: Recognised) -> dict[str, str]:
    """Return tensor name of `recognised.module` -> name in `scheme`, without `num_batches_tracked`.

    Raises:
        ArchitectureError: code of that scheme can't be this network; the message says why.
    """
    spec = recognised.spec
    own = [name for name in recognised.module.state_dict() if not name.endswith("num_batches_tracked")]
    if obstacles := list(_obstacles(scheme, spec)):
        raise ArchitectureError(
            f"{name_of(spec)} has no names in the {scheme.name} naming ({scheme.description}): {'; '.join(obstacles)}"
        )
    if isinstance(spec, PlainSpec):
        return {name: name for name in own}
    blocks = ((stage, block) for stage, count in enumerate(spec.blocks_per_stage) for block in range(count))
    deep = spec.stem == "deep-maxpool"
    modules = module_names(scheme, blocks, deep=deep, pooled=spec.pooled_shortcuts)
    split = ((name, *name.rpartition(".")) for name in own)
    return {name: f"{modules[module]}.{leaf}" for name, module, _, leaf in split}


def tensors_in(scheme: NamingScheme, recognised: Recognised) -> dict[str, Tensor]:
    """Return the weights of `recognised` under the names, and in the shapes, that code of `scheme` loads.

    The tensors share the memory of the network's.

    Raises:
        ArchitectureError: as `names_in`.
    """
    state = recognised.module.state_dict()
    renamed = {new: state[name] for name, new in names_in(scheme, recognised).items()}
    if scheme.classifier_is_conv:
        weight = f"{scheme.classifier}.weight"
        renamed[weight] = renamed[weight][:, :, None, None]
    return renamed


def _obstacles(scheme: NamingScheme, spec: Spec) -> Iterator[str]:
    """Yield the reasons why code of `scheme` can't be the network of `spec`."""
    family = "plain" if isinstance(spec, PlainSpec) else "residual"
    if isinstance(spec, PreActResNetSpec):
        family = "pre-activation"
    if scheme.family != family:
        yield f"it is for {scheme.family} networks, this is a {family} one"
        return
    if isinstance(spec, PlainSpec):
        return
    small, deep = spec.stem == "3x3", spec.stem == "deep-maxpool"
    option_a = not isinstance(spec, PreActResNetSpec) and spec.shortcut == "option-a"
    customary_inner = tuple(width // 4 if spec.block == "bottleneck" else width for width in spec.out_widths)
    if spec.squeeze_widths and not scheme.squeeze:
        yield "it has no squeeze-and-excitation"
    if deep and not scheme.deep_stem:
        yield "it has no stem of three convolutions"
    if spec.pooled_shortcuts and not (scheme.pooled_shortcut or (deep and scheme.deep_stem_pools)):
        yield "it has no average pools before the projections"
    if deep and scheme.deep_stem_pools and not spec.pooled_shortcuts:
        yield "with a stem of three convolutions it has average pools before the projections"
    if small and "3x3 stem" in scheme.lacks:
        yield "its first convolution is 7x7"
    if not small and "7x7 stem" in scheme.lacks:
        yield "its first convolution is 3x3"
    if option_a and "option A" in scheme.lacks:
        yield "it has projections where this has parameter-free shortcuts (option A)"
    if spec.bare_convs and "bare convolutions" in scheme.lacks:
        yield "a BatchNorm follows each of its convolutions"
    if spec.projection_kernels and "3x3 projections" in scheme.lacks:
        yield "its projections are 1x1"
    if spec.biased_convs - spec.bare_convs and "biases" in scheme.lacks:
        yield "its convolutions have no biases"
    if spec.projected_stages[0] and spec.stem_width == spec.out_widths[0] and "needless projections" in scheme.lacks:
        yield "it has no projection in a stage that changes nothing"
    if "free widths" in scheme.lacks and (spec.groups > 1 or spec.inner_widths != customary_inner):
        yield "it has no groups, and bottlenecks a quarter as wide as their output only"
    configurable = scheme.name.startswith("huggingface")
    if spec.strided_conv != scheme.strided_conv and not configurable:
        yield "its blocks stride on another convolution"
    if isinstance(spec, PreActResNetSpec):
        if any(spec.projected_stages) and spec.projection_input != scheme.projection_input:
            yield f"its projections take the {scheme.projection_input} input"
        if spec.final_norm != (scheme.final_norm is not None):
            yield "it ends otherwise after the last block: with a BatchNorm or without"
    elif (spec.activation, spec.first_stage_stride) != ("relu", 1) and not configurable:
        yield "its activations are ReLU and its first stage doesn't stride"
