"""What `--alias` and `--shadow` say: names that lead to models, and models that compute requests a second time.

    --alias  NAME=MODEL[:VERSION]                                        another name
    --alias  NAME=MODEL[:VERSION]@WEIGHT,MODEL[:VERSION]@WEIGHT,…        a split
    --shadow [NAME=]MODEL[:VERSION]@SHARE                                a shadow

Names and versions are those of packages, which have none of the characters `:`, `@`, `=` and `,`.
"""

import math
import re
import reprlib
from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

from fuseline.serve.model_package import NAME_PATTERN

MAX_TARGETS = 16
"""Most models that one alias leads to."""

WEIGHT_TOLERANCE = 1e-3
"""Largest difference from 1 of the sum of weights, which allows for thirds that are written as 0.333."""

_NAME = re.compile(NAME_PATTERN)
_ALIAS_FORM = "expected NAME=MODEL:VERSION, or NAME=MODEL:VERSION@WEIGHT,MODEL:VERSION@WEIGHT"
_SHADOW_FORM = "expected MODEL:VERSION@SHARE, or NAME=MODEL:VERSION@SHARE"


class Target(NamedTuple):
    """A model that a route leads to."""

    model: str
    version: str = ""
    """Version of the model; empty: the one that is served by default at the time."""

    def __str__(self) -> str:
        return f"{self.model}:{self.version}" if self.version else self.model


class Alias(NamedTuple):
    """A name that leads to a model, or to several by their weights."""

    name: str
    targets: tuple[Target, ...]
    weights: tuple[float, ...]
    """Share of the requests that each target gets; they sum to 1."""

    def __str__(self) -> str:
        if len(self.targets) == 1:
            return f"{self.name} leads to {self.targets[0]}"
        shares = (f"{target} ({weight:.4g})" for target, weight in zip(self.targets, self.weights, strict=True))
        return f"{self.name} leads to {', '.join(shares)}"


class Shadow(NamedTuple):
    """A model that computes a share of the requests to a name a second time."""

    name: str
    """Name that the requests ask for: a model's or an alias."""
    target: Target
    share: float
    """Share of those requests, above 0 and at most 1."""

    def __str__(self) -> str:
        return f"{self.target} shadows {self.share:.4g} of the requests to {self.name}"


def alias_from_flag(text: str) -> Alias:
    """Return what `--alias` was given. Raises `ValueError`, whose message says which rule is broken."""
    name, equals, targets_text = text.partition("=")
    if not equals:
        raise ValueError(_ALIAS_FORM)
    _check_name(name, "the alias")
    parts = targets_text.split(",")
    if len(parts) > MAX_TARGETS:
        raise ValueError(f"it leads to {len(parts)} models; at most {MAX_TARGETS} are taken")
    targets: list[Target] = []
    weights: list[float] = []
    for part in parts:
        target_text, at, weight_text = part.partition("@")
        targets.append(_target(target_text, _ALIAS_FORM))
        if at:
            weights.append(_number(weight_text, f"the weight of {targets[-1]}"))
    if len(set(targets)) != len(targets):
        raise ValueError("it names a model twice; add up its weights")
    if len(targets) == 1 and not weights:
        weights = [1.0]
    if len(weights) != len(targets):
        raise ValueError(f"it leads to {len(targets)} models and has {len(weights)} weights; give each its @WEIGHT")
    total = math.fsum(weights)
    if abs(total - 1) > WEIGHT_TOLERANCE:
        raise ValueError(f"its weights sum to {total:.6g}; they are shares of the requests, so they must sum to 1")
    return Alias(name, tuple(targets), tuple(weight / total for weight in weights))


def shadow_from_flag(text: str) -> Shadow:
    """Return what `--shadow` was given. Raises `ValueError`, whose message says which rule is broken."""
    name, equals, rest = text.rpartition("=")
    target_text, at, share_text = rest.partition("@")
    if not at:
        raise ValueError(_SHADOW_FORM)
    target = _target(target_text, _SHADOW_FORM)
    if equals:
        _check_name(name, "the name whose requests are shadowed")
    share = _number(share_text, "the share")
    if share > 1:
        raise ValueError(f"the share is {share:.6g}; it must be above 0 and at most 1")
    return Shadow(name or target.model, target, share)


def check_aliases(aliases: Sequence[Alias]) -> None:
    """Raise `ValueError` if a name is given twice, or leads to another alias."""
    names = [alias.name for alias in aliases]
    for alias in aliases:
        if names.count(alias.name) > 1:
            raise ValueError(f"--alias {alias.name} was given twice; give all its targets at once, with weights")
        for target in alias.targets:
            if target.model in names:
                raise ValueError(
                    f"--alias {alias.name} leads to the alias {target.model}; an alias leads to models, so name those"
                )


def check_shadows(shadows: Sequence[Shadow], aliases: Sequence[Alias]) -> None:
    """Raise `ValueError` if a name has two shadows, or a shadow is an alias."""
    names = [shadow.name for shadow in shadows]
    alias_names = {alias.name for alias in aliases}
    for shadow in shadows:
        if names.count(shadow.name) > 1:
            raise ValueError(f"--shadow was given twice for requests to {shadow.name}; a name has one shadow at most")
        if shadow.target.model in alias_names:
            raise ValueError(
                f"--shadow {shadow.target} is an alias; a shadow is a model, so name that: "
                f"--shadow {shadow.name}=MODEL:VERSION@{shadow.share:.4g}"
            )


def checked_alias(text: str) -> str:
    """Return `text` if it is an alias. Raises what `alias_from_flag` does."""
    alias_from_flag(text)
    return text


def checked_shadow(text: str) -> str:
    """Return `text` if it is a shadow. Raises what `shadow_from_flag` does."""
    shadow_from_flag(text)
    return text


def cumulated(weights: Sequence[float]) -> list[float]:
    """Return the running sums of `weights`, which `bisect` chooses by."""
    return list(accumulate(weights))


def _target(text: str, form: str) -> Target:
    model, colon, version = text.partition(":")
    if not model or (colon and not version):
        raise ValueError(form)
    _check_name(model, "the model")
    if colon:
        _check_name(version, "the version")
    return Target(model, version)


def _check_name(name: str, what: str) -> None:
    if not _NAME.fullmatch(name):
        raise ValueError(
            f"{what} is {reprlib.repr(name)}; expected up to 128 letters, digits, dots, dashes and underscores, a "
            "letter or digit first"
        )


def _number(text: str, what: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise ValueError(f"{what} is {reprlib.repr(text)}; expected a number above 0, such as 0.1")
    return number
