"""Names that Kubernetes takes, made of those that packages may have, and flags that are refused."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fuseline.deploy.manifest.names import (
    MOST_NAME,
    Replicas,
    checked_gpu,
    checked_storage_uri,
    image_from_text,
    instance_name,
    replicas_from_text,
)
from fuseline.serve.errors import InputError
from fuseline.serve.model_package import NAME_PATTERN
from tests.refusals import refusal_of

LABEL = re.compile(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?")
"""RFC 1035's, as names of Services are."""


def made_or_refused(package: str, name: str | None) -> str:
    """The name, or why there is none."""
    try:
        return instance_name(package, name)
    except InputError as error:
        return str(error)


@pytest.mark.parametrize(
    ("package", "name"),
    [
        ("resnet18", "resnet18"),
        ("ResNet_18.v2", "resnet-18-v2"),
        ("152-layers", "model-152-layers"),
        ("a__b--c..d", "a-b-c-d"),
        ("x-", "x"),
    ],
)
def test_a_package_s_name_is_made_one_that_kubernetes_takes(package: str, name: str) -> None:
    assert instance_name(package, None) == name


@given(st.from_regex(NAME_PATTERN, fullmatch=True))
def test_every_name_of_a_package_is_made_valid_or_refused(package: str) -> None:
    made = made_or_refused(package, None)
    assert LABEL.fullmatch(f"{made}-fuseline-headless") or "give a shorter one by --name" in made


@given(st.text(max_size=80))
def test_every_text_is_a_name_or_refused_by_one_line(text: str) -> None:
    made = made_or_refused("resnet18", text)
    assert len(made.splitlines()) == 1
    assert (made == text and LABEL.fullmatch(f"{made}-fuseline-headless")) or made.startswith("--name was given ")


def test_a_name_that_leaves_no_room_is_refused() -> None:
    assert instance_name("a" * MOST_NAME, None)
    assert "46 characters" in refusal_of(InputError, instance_name, "a" * (MOST_NAME + 1), None)


@pytest.mark.parametrize("text", ["0", "-1", "5:2", "abc", "", ":", "2:", ":3", "1:2:3", "1.5", "１", "0:3", "9" * 40])
def test_replicas_that_are_none_are_refused_by_one_line(text: str) -> None:
    message = refusal_of(InputError, replicas_from_text, text)
    assert message.startswith("--replicas was given ")
    assert "\n" not in message


def test_replicas_are_a_number_or_two() -> None:
    assert replicas_from_text("3") == Replicas(3, 3)
    assert replicas_from_text("2:10") == Replicas(2, 10)
    assert not replicas_from_text("2:2").scales
    assert replicas_from_text("2:3").scales


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("resnet18", ("resnet18", "", "")),
        ("registry.example:5000/a/b_c:1.0-x", ("registry.example:5000/a/b_c", "1.0-x", "")),
        ("a@sha256:" + "0" * 64, ("a", "", "sha256:" + "0" * 64)),
        ("a:1@sha256:" + "0" * 64, ("a", "1", "sha256:" + "0" * 64)),
    ],
)
def test_images_are_read_and_written_alike(text: str, parts: tuple[str, str, str]) -> None:
    assert image_from_text(text) == parts
    assert str(image_from_text(text)) == text


@pytest.mark.parametrize("text", ["", " ", "a b", "a:", "A", "a:b:c", "a\n", 'a"b', "a: b", "a@sha256:0", "-a", "a/"])
def test_what_is_no_image_is_refused_by_one_line(text: str) -> None:
    assert "\n" not in refusal_of(InputError, image_from_text, text)


@pytest.mark.parametrize("text", ["", "gpu", "amd.com/gpu", "nvidia.com/", "nvidia.com/gpu: 2", "nvidia.com/gpu\n"])
def test_what_is_no_gpu_is_refused_by_one_line(text: str) -> None:
    assert "\n" not in refusal_of(InputError, checked_gpu, text)


@pytest.mark.parametrize("text", ["", "models", "pvc:/x", "pvc://", "pvc://a b", "pvc://a\nb", "1://a", 'pvc://a"b'])
def test_what_is_no_place_of_a_package_is_refused_by_one_line(text: str) -> None:
    assert "\n" not in refusal_of(InputError, checked_storage_uri, text)
