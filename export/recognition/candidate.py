"""One naming scheme tried on one checkpoint: what it places, the spec that follows, and the deviations from it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn

from fuseline.export.recognition.classifier import (
    Head,
    described,
    heads_beside,
    placed_with,
    with_lone_classifier,
    zeros_for,
)
from fuseline.export.recognition.naming.naming_schemes import NamingScheme
from fuseline.export.recognition.naming.placement import Placement, place
from fuseline.export.recognition.networks.plain_network import PlainNetwork, PlainSpec, infer_plain_spec
from fuseline.export.recognition.networks.preact_resnet import PreActResNet
from fuseline.export.recognition.networks.resnet import ResNet
from fuseline.export.recognition.networks.resnet_spec import PreActResNetSpec
from fuseline.export.recognition.recognised import Spec
from fuseline.export.recognition.spec_inference import infer_spec


@dataclass(frozen=True, eq=False)
class Candidate:
    """One scheme applied to the checkpoint."""

    placement: Placement
    placed: Mapping[str, str]
    """Our tensor names to the checkpoint's."""
    tensors: Mapping[str, Tensor]
    """The checkpoint's tensors that are the network, with the head under the scheme's name for it."""
    has_classifier: bool
    """Whether the checkpoint has a classifier of its own."""
    is_as_named: bool = True
    """Whether the classifier has the scheme's name for it."""
    has_bias: bool = True
    """Whether the classifier has a bias of its own; else it gets zeros."""
    notes: tuple[str, ...] = ()
    """Sentences: what was taken for the classifier, where that isn't plain."""

    @classmethod
    def of(
        cls, scheme: NamingScheme, weights: Mapping[str, Tensor], head: Head | None, head_name: str | None = None
    ) -> Self:
        """Try `scheme` on `weights`, as `at` does."""
        return cls.at(place(scheme, weights), weights, head, head_name)

    @classmethod
    def at(
        cls, placement: Placement, weights: Mapping[str, Tensor], head: Head | None, head_name: str | None = None
    ) -> Self:
        """Try `placement` on `weights`.

        The classifier is the module `head_name`, if that is given; else the module with the scheme's name for it, else
        the only matrix beside the backbone, else `head`. With `head_name` or `head`, other heads are left out. A
        classifier without a bias gets zeros.
        """
        scheme = placement.scheme
        is_as_named = head_name is None and f"{placement.modules['fc']}.weight" in weights
        if head_name is not None:
            placement = placed_with(placement, head_name)
        elif not is_as_named:
            placement = with_lone_classifier(placement, weights)
        classifier = placement.modules["fc"]
        has_classifier = f"{classifier}.weight" in weights
        tensors, notes = dict(weights), []
        if head_name is not None or (head is not None and not has_classifier):
            others = heads_beside(placement, weights)
            tensors = {name: tensor for name, tensor in weights.items() if name not in others}
            flag = "--head" if head_name is not None else "--head-from"
            notes += [f"left out, as {flag} says the classifier: {described(others)}"] if others else []
        if head is not None and not has_classifier:
            classifier = scheme.classifier
            placement = placed_with(placement, classifier)
            tensors |= {f"{classifier}.weight": head[0], f"{classifier}.bias": head[1]}
        elif has_classifier and not is_as_named and head_name is None:
            notes.append(
                f"{classifier} is the classifier, as the only matrix beside the backbone, which fits its width"
            )
        has_bias = not has_classifier or f"{classifier}.bias" in tensors
        if not has_bias:
            tensors[f"{classifier}.bias"] = zeros_for(weights[f"{classifier}.weight"])
            notes.append(f"the classifier {classifier} has no bias in the file: zeros")
        return cls(
            placement,
            placement.placed(tensors),
            tensors,
            has_classifier,
            is_as_named or not has_classifier,
            has_bias,
            tuple(notes),
        )

    @property
    def is_whole(self) -> bool:
        """Whether every tensor has a place."""
        return bool(self.placed) and len(self.placed) == len(self.tensors)

    def found(self) -> dict[str, Tensor]:
        """Return our tensor name -> the checkpoint's tensor, in our shape."""
        found = {ours: self.tensors[theirs].detach() for ours, theirs in self.placed.items()}
        classifier = found.get("fc.weight")
        if classifier is not None and classifier.ndim == 4 and classifier.shape[2:] == (1, 1):
            found["fc.weight"] = classifier.flatten(1)
        return found

    def spec(self, config: Mapping[str, Any]) -> Spec:
        """Return the spec that most tensors agree on.

        Raises:
            ArchitectureError: too few tensors are there to tell.
        """
        shapes = {ours: tuple(tensor.shape) for ours, tensor in self.found().items()}
        if self.placement.scheme.family == "plain":
            return infer_plain_spec(shapes)
        return infer_spec(shapes, self.placement, config)


def empty_module(spec: Spec) -> nn.Module:
    """Return the network of `spec` without weights, on the meta device."""
    with torch.device("meta"):
        if isinstance(spec, PlainSpec):
            return PlainNetwork(spec)
        return PreActResNet(spec) if isinstance(spec, PreActResNetSpec) else ResNet(spec)


def deviations(candidate: Candidate, module: nn.Module) -> dict[str, list[str]]:
    """Return what keeps the checkpoint from being exactly `module`: kind of deviation -> the tensors, for people."""
    state = module.state_dict()
    expected = {name: tuple(t.shape) for name, t in state.items() if not name.endswith("num_batches_tracked")}
    found = candidate.found()
    stored_name = candidate.placement.in_checkpoint
    placed = {candidate.placed[ours] for ours in expected if ours in candidate.placed}
    return {
        "missing": [f"{stored_name(name)} {shape}" for name, shape in expected.items() if name not in found],
        "left over": [
            f"{name} {tuple(tensor.shape)}" for name, tensor in candidate.tensors.items() if name not in placed
        ],
        "misshapen": [
            f"{stored_name(name)} is {tuple(found[name].shape)}, expected {shape}"
            for name, shape in expected.items()
            if name in found and tuple(found[name].shape) != shape
        ],
        "not of floats": [
            f"{stored_name(name)} is {tensor.dtype}"
            for name, tensor in found.items()
            if name in expected and not tensor.is_floating_point()
        ],
    }
