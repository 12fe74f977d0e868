"""What the page of one process is answered from."""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

from fuseline.serve.access.roles import Role
from fuseline.serve.console.facts import folds_of, model_facts
from fuseline.serve.console.load import MAX_RATE, MAX_SECONDS, LoadGenerator
from fuseline.serve.console.reference_images import ReferenceShelf
from fuseline.serve.feed.hub import FeedHub
from fuseline.serve.feed.source import FeedSource
from fuseline.serve.model import Model
from fuseline.serve.repository import Repository
from fuseline.serve.settings import Settings


@dataclass(frozen=True, slots=True)
class Console:
    """What the page shows, and the feed that it watches."""

    settings: Settings
    repository: Repository
    aliases: Callable[[], Sequence[str]]
    addresses: Callable[[], Sequence[str]]
    """Returns the addresses of gRPC."""
    source: FeedSource
    hub: FeedHub
    boot: str
    """Names this run of the server: a page sees by it that it was started anew."""
    reference: ReferenceShelf = field(default_factory=ReferenceShelf)
    load: LoadGenerator = field(default_factory=LoadGenerator)
    started: float = field(default_factory=time.monotonic)
    folds: WeakKeyDictionary[Model, dict[str, Any] | None] = field(default_factory=WeakKeyDictionary)
    """What the report of each model's package says of folds, read once: a page asks every few seconds."""

    @staticmethod
    def times() -> tuple[float, float]:
        """Return the time now on the feed's clock, and the wall's, in seconds since 1970."""
        return time.monotonic(), time.time()

    @property
    def why_no_load(self) -> str:
        """Reason, for people, why this server puts no load on itself; empty: it does."""
        if self.settings.http_is_local:
            return ""
        return "the server listens beyond this machine, and lets only this machine's own pages put a load on it"

    async def facts(self, version: str, role: Role) -> dict[str, Any]:
        """Return what the page shows of the server to who has `role`; `version` is Fuseline's."""
        settings = self.settings
        models = [(model, model.batcher.bucket_seconds) for model in self.repository]
        why_no_load = self.why_no_load
        if not why_no_load and not role.allows(Role.ADMIN):
            why_no_load = f"a load needs a token of the role {Role.ADMIN}; yours has the role {role}"

        def facts_of_models() -> list[dict[str, Any]]:
            highest: set[str] = set()
            told = []
            # The versions of a name come together, the highest first.
            for model, seconds in models:
                if model not in self.folds:
                    self.folds[model] = folds_of(model.package)
                is_default = model.name not in highest
                told.append(model_facts(model, seconds, self.folds[model], settings, is_default=is_default))
                highest.add(model.name)
            return told

        return {
            "version": version,
            "boot": self.boot,
            "uptime_s": round(time.monotonic() - self.started, 1),
            "workers": settings.workers,
            "grpc": list(self.addresses()),
            "tokens": settings.token_hashes is not None,
            "tls": settings.tls_cert is not None,
            "role": str(role),
            "model_control": settings.model_control_mode,
            "repository": bool(settings.model_repository),
            "load": {
                "allowed": not why_no_load,
                "why_not": why_no_load,
                "max_seconds": MAX_SECONDS,
                "max_rate": MAX_RATE,
            },
            "aliases": list(self.aliases()),
            "models": await asyncio.to_thread(facts_of_models),
        }
