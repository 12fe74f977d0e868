"""The search for what fits, on trials whose misfit is given, and what it finds out of a trained network."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from fuseline.export.assumptions.search import Search
from fuseline.export.assumptions.trials import Trial, best_of
from fuseline.export.facts.normalizations import normalization_named
from tests.commands import Run
from tests.export.digits import held_out_folder, trained_on_digits
from tests.export.small_resnets import SmallResNet

VALUES = {
    "stride": ("conv1", "conv2"),
    "stem-stride": ("1", "2"),
    "pool": ("none", "max3"),
    "activation": ("relu", "silu"),
}
ASSUMED = {key: values[0] for key, values in VALUES.items()}


def search(misfit: Callable[[Mapping[str, str]], float]) -> Search:
    def trial(values: Mapping[str, str], images: int) -> Trial:
        return Trial(values, images, misfit(values), None, np.zeros((images, 10), np.float32))

    def alternatives(key: str, value: str) -> Sequence[str]:
        return [other for other in VALUES[key] if other != value]

    return Search(trial, alternatives, 64, lambda _: None)


def found(search: Search, width: int) -> dict[str, str]:
    assumed = search.trial(ASSUMED)
    search.climb(assumed, width=width)
    best = search.needed_of(best_of([trial for trial in search.tried if search.is_whole(trial)]), assumed)
    return best.changes_from(assumed)


@pytest.mark.parametrize(
    ("wanted", "width"),
    [
        ({"stem-stride": "2", "pool": "max3"}, 1),
        ({"stride": "conv2", "stem-stride": "2", "pool": "max3", "activation": "silu"}, 1),
        ({"stride": "conv2"}, 4),
    ],
)
def test_steps_that_are_small_alone_add_up(wanted: dict[str, str], width: int) -> None:
    right = {**ASSUMED, **wanted}
    assert found(search(lambda values: 0.1 + 0.25 * sum(right[k] != v for k, v in values.items())), width) == wanted


def test_two_strides_that_only_together_fit_are_found() -> None:
    def misfit(values: Mapping[str, str]) -> float:
        changed = [values["stride"] == "conv2", values["stem-stride"] == "2"]
        return 0.05 if all(changed) else 0.9 if any(changed) else 0.5

    assert found(search(misfit), 4) == {"stride": "conv2", "stem-stride": "2"}


def test_what_hides_the_right_value_at_first_does_not_lead_astray() -> None:
    def misfit(values: Mapping[str, str]) -> float:
        if values["activation"] == "silu":
            return 0.6
        return 2.0 - 0.95 * ((values["pool"] == "max3") + (values["stem-stride"] == "2"))

    assert found(search(misfit), 4) == {"pool": "max3", "stem-stride": "2"}


def test_what_makes_no_clear_difference_is_not_among_the_changes() -> None:
    def misfit(values: Mapping[str, str]) -> float:
        return (0.1 if values["pool"] == "max3" else 0.5) * (0.85 if values["activation"] == "silu" else 1)

    assert found(search(misfit), 1) == {"pool": "max3"}


def test_a_network_that_fits_nothing_is_looked_at_on_few_images() -> None:
    searched = search(lambda values: 2.0 + 0.5 * (values["activation"] == "silu") - 0.5 * (values["pool"] == "max3"))
    rivals = searched.rivals(searched.trial(ASSUMED))
    assert [dict(r.values)["pool"] for r in rivals if searched.is_whole(r)] == ["max3"]


def test_a_stem_that_strides_before_its_max_pool_is_found_out(run_export: Run, tmp_path: Path) -> None:
    network = SmallResNet(stem_stride=2, stem_pool=True)
    trained_on_digits(network, normalization_named("imagenet", 3), side=32, epochs=2)
    torch.save(network.state_dict(), tmp_path / "net.pt")
    folder = held_out_folder(tmp_path / "val", side=32)
    stopped = run_export(tmp_path / "net.pt", "--out", tmp_path / "m", "--images", folder)
    assert stopped.exit_code == 1, stopped.stderr
    assert "the images fit stem-stride=2,pool=max3 clearly better" in stopped.stderr
