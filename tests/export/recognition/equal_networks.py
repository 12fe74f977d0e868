"""A recognised network beside another: the same logits, the same weights; and what is refused instead."""

import torch
from torch import Tensor, nn

from fuseline.export.recognition.architectures import Recognised, recognise
from fuseline.serve.errors import ArchitectureError
from tests.refusals import refusal_of

RELATIVE = 1e-4


def assert_equal_logits(reference: nn.Module, recognised: Recognised, side: int, channels: int = 3) -> None:
    """Equal within 1e-4 relative on an odd number of rows."""
    images = torch.randn(3, channels, side, side, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        expected, found = reference(images), recognised.module(images)
    expected = getattr(expected, "logits", expected)
    assert not recognised.module.training
    assert expected.std() > 0
    assert (found - expected).abs().max() <= RELATIVE * expected.abs().max()


def assert_same_network(first: Recognised, second: Recognised) -> None:
    """The same spec and the same weights, so the same exported bytes."""
    assert first.spec == second.spec
    ours, theirs = first.module.state_dict(), second.module.state_dict()
    assert list(ours) == list(theirs)
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


def assert_exports_with_a_dynamic_batch(recognised: Recognised, side: int) -> None:
    """torch.export of two rows gives a program that is right on five."""
    module, channels = recognised.module, recognised.in_channels
    example = (torch.randn(2, channels, side, side),)
    program = torch.export.export(module, example, dynamic_shapes=({0: torch.export.Dim("n")},))
    images = torch.randn(5, channels, side, side)
    with torch.inference_mode():
        torch.testing.assert_close(program.module()(images), module(images))


def refusal(tensors: dict[str, Tensor], **options) -> str:
    """Return the message with which `tensors` are refused."""
    return refusal_of(ArchitectureError, recognise, tensors, **options)
