"""The choices that change a ResNet's answers and that no tensor tells: their values, and how a spec takes one."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, get_args

from fuseline.export.recognition.naming.naming_schemes import COMPOSED, NamingScheme, ProjectionInput
from fuseline.export.recognition.networks.activations import ACTIVATIONS
from fuseline.export.recognition.networks.plain_network import PlainSpec
from fuseline.export.recognition.networks.resnet_spec import PaddedShortcut, PreActResNetSpec, ResNetSpec, StemPool
from fuseline.export.recognition.recognised import Spec
from fuseline.serve.errors import InputError
from fuseline.serve.model_package import Assumption

# Values that an export tries on images: those in use that are neither rare nor much like another.
_USUAL_ACTIVATIONS = ("relu", "leaky-relu-0.1", "gelu", "silu", "elu", "tanh")
_USUAL_EPS = ("1e-05", "0.001")
FACTORY_FLAG = "--factory package.module:function"


@dataclass(frozen=True)
class Choice:
    """A property of a network that is taken as is customary unless something tells it."""

    key: str
    """The key of `--assume KEY=VALUE`."""
    known: tuple[str, ...]
    """Every value that can be built; () where any number will do."""
    usual: tuple[str, ...]
    """The values in use, the commonest first."""
    applies_to: Callable[[Spec], bool]
    """Whether the network of a spec has this property."""
    value_in: Callable[[Spec], str]
    """The value that a spec has."""
    taken_in: Callable[[Spec, str], Spec]
    """The spec with another value."""
    meaning: Callable[[Spec], str]
    """What the spec's value means, as a sentence for people."""


def _has_stem(spec: Spec) -> bool:
    return isinstance(spec, ResNetSpec)


def _is_padded(spec: Spec) -> bool:
    return isinstance(spec, ResNetSpec) and not isinstance(spec, PreActResNetSpec) and spec.shortcut == "option-a"


def _has_batchnorms(spec: Spec) -> bool:
    return isinstance(spec, PlainSpec) or "stem" not in spec.bare_convs


def _resnet(spec: Spec) -> ResNetSpec:
    assert isinstance(spec, ResNetSpec)
    return spec


def _preact(spec: Spec) -> PreActResNetSpec:
    assert isinstance(spec, PreActResNetSpec)
    return spec


def _with_activation(spec: Spec, value: str) -> Spec:
    if isinstance(spec, PlainSpec):
        return replace(spec, activation=_literal(value))
    return replace(spec, activation=_literal(value), inner_activation=_literal(value))


def _literal(value: str) -> Any:
    """Return `value`, which is one of the values of a Literal, as a type that passes for it."""
    return value


def _with_stride(spec: Spec, value: str) -> Spec:
    number = int(value.removeprefix("conv"))
    customary = replace(_resnet(spec), strided_conv=None)
    return customary if number == customary.striding_conv else replace(customary, strided_conv=number)


def _with_stem_stride(spec: Spec, value: str) -> Spec:
    customary = replace(_resnet(spec), stem_stride=None)
    return customary if int(value) == customary.stem_strides_by else replace(customary, stem_stride=int(value))


def _with_pool(spec: Spec, value: str) -> Spec:
    customary = replace(_resnet(spec), stem_pool=None)
    return customary if value == customary.pool_after_stem else replace(customary, stem_pool=_literal(value))


_POOLS: dict[StemPool, str] = {
    "none": "no pool follows the first convolution",
    "max3": "a 3x3 max-pool of stride 2 follows the first convolution",
    "max2": "a 2x2 max-pool follows the first convolution",
}
_SHORTCUTS: dict[PaddedShortcut, str] = {
    "zeros-around": "the parameter-free shortcuts skip every second pixel and add half of their zero channels before "
    "and half after",
    "zeros-after": "the parameter-free shortcuts skip every second pixel and add all of their zero channels after",
    "average-zeros-around": "the parameter-free shortcuts average 2 x 2 pixels and add half of their zero channels "
    "before and half after",
    "average-zeros-after": "the parameter-free shortcuts average 2 x 2 pixels and add all of their zero channels after",
    "none": "there are no shortcuts: a plain network",
}

CHOICES: tuple[Choice, ...] = (
    Choice(
        key="shortcut",
        known=get_args(PaddedShortcut),
        usual=get_args(PaddedShortcut),
        applies_to=_is_padded,
        value_in=lambda spec: _resnet(spec).padded_shortcut,
        taken_in=lambda spec, value: replace(_resnet(spec), padded_shortcut=_literal(value)),
        meaning=lambda spec: _SHORTCUTS[_resnet(spec).padded_shortcut],
    ),
    Choice(
        key="projection",
        known=get_args(ProjectionInput),
        usual=get_args(ProjectionInput),
        applies_to=lambda spec: isinstance(spec, PreActResNetSpec) and any(spec.projected_stages),
        value_in=lambda spec: _preact(spec).projection_input,
        taken_in=lambda spec, value: replace(_preact(spec), projection_input=_literal(value)),
        meaning=lambda spec: f"projections take the block's {_preact(spec).projection_input} input",
    ),
    Choice(
        key="stride",
        known=("conv1", "conv2"),
        usual=("conv2", "conv1"),
        applies_to=_has_stem,
        value_in=lambda spec: f"conv{_resnet(spec).striding_conv}",
        taken_in=_with_stride,
        meaning=lambda spec: (
            f"blocks stride on their convolution {_resnet(spec).striding_conv} and in their shortcut; no further pool "
            "stands in or between them, and none is dilated"
        ),
    ),
    Choice(
        key="first-stage-stride",
        known=("1", "2"),
        usual=("1", "2"),
        applies_to=lambda spec: isinstance(spec, ResNetSpec) and spec.projected_stages[0],
        value_in=lambda spec: str(_resnet(spec).first_stage_stride),
        taken_in=lambda spec, value: replace(_resnet(spec), first_stage_stride=int(value)),
        meaning=lambda spec: f"the first stage strides by {_resnet(spec).first_stage_stride}, later ones by 2",
    ),
    Choice(
        key="stem-stride",
        known=("1", "2"),
        usual=("1", "2"),
        applies_to=_has_stem,
        value_in=lambda spec: str(_resnet(spec).stem_strides_by),
        taken_in=_with_stem_stride,
        meaning=lambda spec: f"the first convolution strides by {_resnet(spec).stem_strides_by}",
    ),
    Choice(
        key="pool",
        known=get_args(StemPool),
        usual=get_args(StemPool),
        applies_to=_has_stem,
        value_in=lambda spec: _resnet(spec).pool_after_stem,
        taken_in=_with_pool,
        meaning=lambda spec: f"{_POOLS[_resnet(spec).pool_after_stem]}, and the last pool is a global average",
    ),
    Choice(
        key="activation",
        known=tuple(ACTIVATIONS),
        usual=_USUAL_ACTIVATIONS,
        applies_to=lambda _: True,
        value_in=lambda spec: spec.activation,
        taken_in=_with_activation,
        meaning=lambda spec: f"activations are {spec.activation}",
    ),
    Choice(
        key="eps",
        known=(),
        usual=_USUAL_EPS,
        applies_to=_has_batchnorms,
        value_in=lambda spec: f"{spec.eps:g}",
        taken_in=lambda spec, value: replace(spec, eps=_eps(value)),
        meaning=lambda spec: f"BatchNorm's eps is {spec.eps:g}",
    ),
)


def choices_in(spec: Spec) -> Iterator[Choice]:
    """Return the choices that the network of `spec` has."""
    return (choice for choice in CHOICES if choice.applies_to(spec))


def spec_with(spec: Spec, values: Mapping[str, str]) -> Spec:
    """Return `spec` with `values`, by key of the choices; keys of no choice of this network are ignored.

    Raises:
        InputError: a choice doesn't have the value; the message lists those that it has.
    """
    for choice in CHOICES:
        value = values.get(choice.key)
        if value is None or not choice.applies_to(spec):
            continue
        if choice.known and value not in choice.known:
            raise InputError(f"--assume {choice.key}={value}: one of {', '.join(choice.known)} was expected")
        spec = choice.taken_in(spec, value)
    return spec


def assumptions_of(
    spec: Spec,
    scheme: NamingScheme,
    classifier: str,
    *,
    settled: frozenset[str],
    flags: Mapping[str, str],
    has_bias: bool = True,
) -> Iterator[Assumption]:
    """Yield what changes the answers of the network of `spec` and no tensor tells.

    Args:
        spec: the spec, with `flags` taken already.
        scheme: the scheme of its tensors' names.
        classifier: the checkpoint's name of the classifier.
        settled: keys that the checkpoint's file settles.
        flags: what `--assume` says, by key.
        has_bias: whether the classifier has a bias in the checkpoint.
    """
    for choice in choices_in(spec):
        if choice.key in settled and choice.key not in flags:
            continue
        value = choice.value_in(spec)
        yield Assumption(
            key=choice.key,
            value=value,
            meaning=choice.meaning(spec),
            alternatives=tuple(other for other in choice.usual if other != value),
            flag=f"--assume {choice.key}=VALUE",
            settled_by=f"--assume {choice.key}={flags[choice.key]}" if choice.key in flags else None,
        )
    for key, value, meaning in _of_code_alone(spec, scheme, classifier, has_bias=has_bias):
        if key not in settled or key in flags:
            yield Assumption(
                key=key,
                value=value,
                meaning=meaning,
                flag=f"--assume {key}={value} or {FACTORY_FLAG}",
                settled_by=f"--assume {key}={value}" if flags.get(key) == value else None,
            )


def _of_code_alone(
    spec: Spec, scheme: NamingScheme, classifier: str, *, has_bias: bool
) -> Iterator[tuple[str, str, str]]:
    """Yield (key, value, meaning) of assumptions whose alternatives only the user's own code can compute."""
    is_as_named = classifier == scheme.classifier
    # A composed scheme has the checkpoint's own name for the classifier, so that `is_as_named` tells nothing there.
    if classifier.rpartition(".")[2].isdigit() and (not is_as_named or scheme.name in COMPOSED):
        yield (
            "head",
            "dropout",
            f"the classifier stands in a Sequential, as {classifier}; what comes before it there and has no tensors "
            "is dropout, which does nothing at inference",
        )
    elif not is_as_named:
        yield (
            "head",
            "direct",
            f"{classifier}, told by its width or by --head, is the classifier and takes the pooled features as they "
            "are: no activation and no normalisation stands between",
        )
    if not has_bias:
        yield (
            "classifier",
            "linear",
            f"the classifier {classifier}, which has no bias, is a linear layer; heads that compare directions alone "
            "(ArcFace, CosFace and other cosine classifiers) have such a matrix too",
        )
    if isinstance(spec, PlainSpec):
        yield "widening", "strides", "the plain network strides by 2 where its width doubles"
        if spec.maxpool:
            yield "gap", "max3", "the layer without tensors behind the first convolution is a 3x3 max-pool of stride 2"
    elif spec.stem == "deep-maxpool" or spec.squeeze_widths or spec.pooled_shortcuts:
        yield (
            "antialias",
            "none",
            "there are no anti-aliasing pools (timm's resnetaa* and resnetblur* have them), and average pools come "
            "before projections only where the names say so",
        )


def _eps(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value < 1:
        raise InputError(f"--assume eps={text}: a number above 0 and below 1 was expected, such as 0.001")
    return value
