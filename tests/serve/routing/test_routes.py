"""Aliases and splits over a repository whose models come and go."""

import gc
import logging
import random
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from weakref import ref

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from fuseline.serve.errors import InputError, UnknownModelError
from fuseline.serve.metrics.routing_metrics import AliasMetrics
from fuseline.serve.model import Model, load_model
from fuseline.serve.repository import Repository
from fuseline.serve.route_flags import alias_from_flag
from fuseline.serve.routing.routes import Routes
from tests.fakes.batch_counts import RecordedBatches
from tests.serve.conftest import settings

Load = Callable[[str], Model]


@pytest.fixture
def stable(load: Load) -> Model:
    return load("stable")


@pytest.fixture
def canary(load: Load) -> Model:
    return load("canary")


def routes(
    repository: Repository,
    *aliases: str,
    registry: CollectorRegistry | None = None,
    draws: Sequence[float] | None = None,
    seed: int = 0,
) -> Routes:
    """Routes whose draws are `draws`, or those of a seeded generator."""
    draw = random.Random(seed).random if draws is None else iter(draws).__next__
    metrics = None if registry is None else AliasMetrics(registry)
    return Routes(repository, [alias_from_flag(text) for text in aliases], metrics, draw=draw)


def serve_only(repository: Repository, *models: Model) -> None:
    """Have `repository` serve these models from now on, and no others."""
    repository.__init__(models)  # type: ignore[misc]


def test_without_aliases_requests_are_found_by_the_repository_itself(stable: Model) -> None:
    repository = Repository([stable])
    assert Routes(repository).finder is repository
    with pytest.raises(UnknownModelError, match=r"there is no model 'prod' here; served: stable$"):
        Routes(repository).find("prod")


def test_an_alias_leads_to_its_model_and_every_model_keeps_its_own_name(stable: Model, canary: Model) -> None:
    routed = routes(Repository([stable, canary]), "prod=stable:3", "next=canary")
    assert routed.finder is routed
    assert routed.find("prod") is routed.find("prod", "3") is routed.find("stable") is stable
    assert routed.find("next") is routed.find("next", "4") is routed.find("canary", "4") is canary
    with pytest.raises(UnknownModelError, match="no model 'best' here; served: canary, stable; aliases: next, prod"):
        routed.find("best")


def test_an_empty_name_is_the_only_model_whatever_the_aliases(stable: Model) -> None:
    assert routes(Repository([stable]), "prod=stable").find("") is stable


@pytest.mark.parametrize("seed", range(3))
def test_a_split_gives_each_target_its_share_of_many_requests(stable: Model, canary: Model, seed: int) -> None:
    registry = CollectorRegistry()
    routed = routes(Repository([stable, canary]), "prod=stable:3@0.9,canary:4@0.1", registry=registry, seed=seed)
    requests = 20_000
    given = Counter(routed.find("prod").name for _ in range(requests))
    # Five standard deviations of a binomial distribution.
    deviation = (requests * 0.9 * 0.1) ** 0.5
    assert abs(given["canary"] - 0.1 * requests) < 5 * deviation
    assert given["stable"] + given["canary"] == requests
    text = generate_latest(registry).decode()
    for name, version in (("stable", "3"), ("canary", "4")):
        counted = f'fuseline_alias_requests_total{{alias="prod",model="{name}",version="{version}"}} {given[name]}.0'
        assert counted in text


def test_a_draw_below_the_first_weight_is_for_the_first_target(stable: Model, canary: Model) -> None:
    draws = [0.0, 0.899, 0.901, 1 - 2**-53]
    routed = routes(Repository([stable, canary]), "prod=stable@0.9,canary@0.1", draws=draws)
    assert [routed.find("prod").name for _ in draws] == ["stable", "stable", "canary", "canary"]


def test_a_version_chooses_among_the_targets_of_a_split(stable: Model, canary: Model) -> None:
    routed = routes(Repository([stable, canary]), "prod=stable:3@0.9,canary:4@0.1", draws=[])
    assert routed.find("prod", "4") is canary
    assert routed.first("prod", "4") is canary
    assert routed.served("prod") == [stable, canary]
    wrong = "the alias prod leads to no version '5', it leads to stable:3, canary:4; leave the version out"
    for ask in (routed.find, routed.first, routed.served):
        with pytest.raises(UnknownModelError, match=wrong):
            ask("prod", "5")


def test_a_version_that_is_not_served_is_never_answered_by_another(stable: Model) -> None:
    repository = Repository([stable])
    routed = routes(repository, "prod=stable:2", "best=stable", "next=canary")
    with pytest.raises(
        UnknownModelError, match="the alias prod leads to stable:2, which is not served now; served: sta"
    ):
        routed.find("prod")
    with pytest.raises(
        UnknownModelError, match="the alias best leads to stable, which is not served in version '9' now"
    ):
        routed.find("best", "9")
    with pytest.raises(UnknownModelError, match="the alias next leads to canary, which is not served now"):
        routed.first("next")
    long = "9" * 10_000
    with pytest.raises(UnknownModelError) as caught:
        routed.find("best", long)
    assert len(str(caught.value)) < 300


def test_what_is_left_of_a_split_takes_over_is_counted_and_logged_once(
    stable: Model, canary: Model, caplog: pytest.LogCaptureFixture
) -> None:
    repository, registry = Repository([stable, canary]), CollectorRegistry()
    # No draw is needed where one target is left.
    routed = routes(repository, "prod=stable:3@0.9,canary:4@0.1", registry=registry, draws=[0.95, 0.95])
    assert routed.find("prod") is canary
    serve_only(repository, stable)
    with caplog.at_level(logging.WARNING):
        assert {routed.find("prod") for _ in range(3)} == {stable}
    assert [record.getMessage() for record in caplog.records] == [
        "alias prod: canary:4 is not served; its requests go to stable:3"
    ]
    missing = 'fuseline_alias_missing_target_total{alias="prod",target="canary:4"} 3.0'
    assert missing in generate_latest(registry).decode()
    serve_only(repository, stable, canary)
    assert routed.find("prod") is canary
    caplog.clear()
    serve_only(repository)
    with caplog.at_level(logging.WARNING), pytest.raises(UnknownModelError):
        routed.find("prod")
    assert "stable:3 is not served; its requests fail" in caplog.text


def test_a_target_that_came_and_answers_something_else_is_given_no_request(
    stable: Model, load: Load, caplog: pytest.LogCaptureFixture
) -> None:
    repository = Repository([stable])
    routed = routes(repository, "prod=stable@0.5,turned@0.5", draws=[])
    assert routed.find("prod") is stable
    serve_only(repository, stable, load("turned"))
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        assert routed.find("prod") is stable
    assert caplog.messages == [
        "alias prod: turned is left out: turned:1 and stable:3 differ in the label of class 0, 'dark' and 'red'; its "
        "requests go to stable"
    ]
    assert routed.served("prod") == [stable]
    assert [entry.model for entry in routed.entries()] == [stable, None]


async def test_an_alias_keeps_no_model_in_memory_that_is_served_no_more(packages: Path) -> None:
    # One that no other test holds.
    model = load_model(packages / "stable", settings(max_batch=1), RecordedBatches())
    repository = Repository([model])
    routed = routes(repository, "prod=stable@0.5,canary@0.5")
    assert routed.find("prod") is model
    await model.close()
    gone = ref(model)
    serve_only(repository)
    del model
    gc.collect()
    assert gone() is None
    with pytest.raises(UnknownModelError, match="the alias prod leads to stable, canary, which is not served now"):
        routed.find("prod")


@pytest.mark.parametrize(
    ("alias", "reason"),
    [
        ("stable=canary", "--alias stable: a model of that name is served already; give the alias another name"),
        ("prod=missing", "--alias prod=missing: there is no model 'missing' here; served: "),
        ("prod=stable:4", "--alias prod=stable:4: there is no version '4' of stable here; served: '3'"),
        ("prod=stable@0.5,missing@0.5", "--alias prod=missing: there is no model"),
        (
            "prod=stable@0.5,turned@0.5",
            "--alias prod=turned: turned:1 and stable:3 differ in the label of class 0, 'dark' and 'red'; clients read",
        ),
        (
            "prod=stable@0.5,floats@0.5",
            r"differ in their input, 'input' FP32 \[3, 8, 8\] and 'image' UINT8 \[8, 8, 3\]",
        ),
    ],
)
def test_an_alias_that_does_not_fit_the_models_is_refused_at_the_start(load: Load, alias: str, reason: str) -> None:
    repository = Repository([load(name) for name in ("stable", "canary", "turned", "floats")])
    routes(repository, "prod=stable@0.5,canary@0.5", "best=canary:4").check()
    with pytest.raises(InputError, match=reason):
        routes(repository, alias).check()
