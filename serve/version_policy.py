"""Which versions of a model in a repository are served: the latest, all, or given ones."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Self

from fuseline.serve.version_order import version_order

EXPECTED_POLICY = "latest, latest:COUNT, all or specific:VERSION,VERSION, with or without MODEL= before it"

_POLICY = re.compile(
    r"(?:(?P<model>[^=]*)=)?(?:latest(?::(?P<count>[1-9][0-9]{0,5}))?|(?P<all>all)|specific:(?P<given>[^=]+))"
)


@dataclass(frozen=True, slots=True)
class VersionPolicy:
    """One policy; by default the latest version is served."""

    count: int | None = 1
    """Largest number of versions that are served; None: all."""
    given: tuple[str, ...] | None = None
    """The only versions that are served, each once; None: any."""

    def __str__(self) -> str:
        """Return the policy as `policy_from_text` reads it."""
        if self.given is not None:
            return f"specific:{','.join(self.given)}"
        return "all" if self.count is None else f"latest:{self.count}"

    def candidates(self, versions: Iterable[str]) -> list[str]:
        """Return those of `versions` that may be served, the highest first. `count` counts those that can be."""
        allowed = [version for version in versions if self.given is None or version in self.given]
        return sorted(allowed, key=version_order, reverse=True)


LATEST = VersionPolicy()


def policy_from_text(text: str) -> tuple[str, VersionPolicy]:
    """Return the model's name, empty for every model, and the policy that `text` says.

    Raises:
        ValueError: it says none; the message tells what was expected.
    """
    found = _POLICY.fullmatch(text)
    if found is None or found["model"] == "":
        raise ValueError(f"expected {EXPECTED_POLICY}")
    if found["given"] is not None:
        given = tuple(dict.fromkeys(found["given"].split(",")))
        if "" in given:
            raise ValueError(f"a version is empty; expected {EXPECTED_POLICY}")
        return found["model"] or "", VersionPolicy(None, given)
    count = None if found["all"] else int(found["count"] or 1)
    return found["model"] or "", VersionPolicy(count)


class VersionPolicies:
    """The policy of each model."""

    def __init__(self, policies: Mapping[str, VersionPolicy]) -> None:
        """Begin with policies by the model's name; that of the empty name is every other model's."""
        self._policies = policies

    @classmethod
    def from_texts(cls, texts: Iterable[str]) -> Self:
        """Return what `texts` say, of which a later one of the same model counts. Raises as `policy_from_text`."""
        return cls(dict(map(policy_from_text, texts)))

    def of(self, model: str) -> VersionPolicy:
        """Return the policy of the model called `model`."""
        return self._policies.get(model) or self._policies.get("", LATEST)
