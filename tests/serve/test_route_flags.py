"""What `--alias` and `--shadow` take, and what their refusals say."""

import pytest

from fuseline.serve.errors import InputError
from fuseline.serve.route_flags import Alias, Shadow, Target, alias_from_flag, shadow_from_flag
from fuseline.serve.settings import Settings, settings_from_flags


@pytest.mark.parametrize(
    ("text", "alias"),
    [
        ("prod=resnet18", Alias("prod", (Target("resnet18", ""),), (1.0,))),
        ("prod=resnet18:3", Alias("prod", (Target("resnet18", "3"),), (1.0,))),
        ("prod=resnet18:3@1", Alias("prod", (Target("resnet18", "3"),), (1.0,))),
        ("p.1=a:v1.2-x@.75,b@0.25", Alias("p.1", (Target("a", "v1.2-x"), Target("b", "")), (0.75, 0.25))),
    ],
)
def test_an_alias_is_read_with_its_targets_and_weights(text: str, alias: Alias) -> None:
    assert alias_from_flag(text) == alias
    assert settings_from_flags(alias=[text]).aliases == [alias]


def test_thirds_written_short_are_weights_that_sum_to_one() -> None:
    assert sum(alias_from_flag("prod=a@0.333,b@0.333,c@0.333").weights) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize(
    ("text", "shadow"),
    [
        ("resnet18:4@0.05", Shadow("resnet18", Target("resnet18", "4"), 0.05)),
        ("prod=resnet18:4@1", Shadow("prod", Target("resnet18", "4"), 1.0)),
        ("prod=resnet50@1e-3", Shadow("prod", Target("resnet50", ""), 0.001)),
    ],
)
def test_a_shadow_is_read_with_the_name_whose_requests_it_computes(text: str, shadow: Shadow) -> None:
    assert shadow_from_flag(text) == shadow
    assert settings_from_flags(shadow=[text]).shadows == [shadow]


@pytest.mark.parametrize(
    ("flags", "rule"),
    [
        ({"alias": ["prod"]}, "--alias was given 'prod': expected NAME=MODEL:VERSION"),
        ({"alias": ["prod="]}, "expected NAME=MODEL:VERSION"),
        ({"alias": ["prod=a:"]}, "expected NAME=MODEL:VERSION"),
        ({"alias": ["=a"]}, "the alias is ''; expected up to 128 letters"),
        ({"alias": ["prod=a/b"]}, "the model is 'a/b'; expected up to 128 letters"),
        ({"alias": ["prod=a:1:2"]}, "the version is '1:2'; expected"),
        ({"alias": ["prod=" + "x" * 10_000]}, "the model is 'xxxxxxxxxxxx...xxxxxxxxxxxxx'; expected"),
        ({"alias": ["prod=a,b"]}, "it leads to 2 models and has 0 weights; give each its @WEIGHT"),
        ({"alias": ["prod=a@0.5,b"]}, "it leads to 2 models and has 1 weights"),
        (
            {"alias": ["prod=a@0.9,b@0.01"]},
            "its weights sum to 0.91; they are shares of the requests, so they must sum",
        ),
        ({"alias": ["prod=a@90,b@10"]}, "its weights sum to 100"),
        ({"alias": ["prod=a@1,b@0"]}, "the weight of b is '0'; expected a number above 0"),
        ({"alias": ["prod=a@2,b@-1"]}, "the weight of b is '-1'; expected a number above 0"),
        ({"alias": ["prod=a@nan,b@1"]}, "the weight of a is 'nan'; expected a number above 0"),
        ({"alias": ["prod=a@inf,b@1"]}, "the weight of a is 'inf'; expected a number above 0"),
        ({"alias": ["prod=a@x,b@1"]}, "the weight of a is 'x'; expected a number above 0"),
        ({"alias": ["prod=a:1@0.5,a:1@0.5"]}, "it names a model twice; add up its weights"),
        ({"alias": ["prod=" + ",".join(f"m{n}@1" for n in range(17))]}, "it leads to 17 models; at most 16 are taken"),
        ({"alias": ["prod=a", "prod=b"]}, "--alias prod was given twice; give all its targets at once, with weights"),
        ({"alias": ["prod=a", "best=prod"]}, "--alias best leads to the alias prod; an alias leads to models"),
        ({"alias": ["prod=prod"]}, "--alias prod leads to the alias prod"),
        ({"shadow": ["a:4"]}, "--shadow was given 'a:4': expected MODEL:VERSION@SHARE"),
        ({"shadow": ["a:4@"]}, "the share is ''; expected a number above 0"),
        ({"shadow": ["a:4@0"]}, "the share is '0'; expected a number above 0"),
        ({"shadow": ["a:4@5"]}, "the share is 5; it must be above 0 and at most 1"),
        ({"shadow": ["=a@0.5"]}, "the name whose requests are shadowed is ''"),
        ({"shadow": ["a:1@0.5", "a=b@0.5"]}, "--shadow was given twice for requests to a; a name has one shadow"),
        (
            {"alias": ["prod=a"], "shadow": ["b=prod@0.5"]},
            "--shadow prod is an alias; a shadow is a model, so name that: --shadow b=MODEL:VERSION@0.5",
        ),
    ],
)
def test_a_wrong_route_is_refused_with_the_rule_that_it_breaks(flags: dict[str, list[str]], rule: str) -> None:
    with pytest.raises(InputError) as caught:
        settings_from_flags(**flags)
    assert rule in str(caught.value)


def test_settings_with_routes_survive_the_way_to_another_process() -> None:
    told = settings_from_flags(alias=["prod=a:1@0.5,b@0.5"], shadow=["prod=c@0.1"])
    assert Settings.model_validate_json(told.model_dump_json()) == told


def test_routes_are_told_to_people_as_sentences() -> None:
    assert str(alias_from_flag("prod=a:3")) == "prod leads to a:3"
    assert str(alias_from_flag("prod=a:3@0.9,a:4@0.1")) == "prod leads to a:3 (0.9), a:4 (0.1)"
    assert str(shadow_from_flag("prod=a:4@0.05")) == "a:4 shadows 0.05 of the requests to prod"
