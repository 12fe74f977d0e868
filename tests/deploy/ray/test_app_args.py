import re
from pathlib import Path
from typing import Any

import pytest

from fuseline.deploy.ray.app_args import _SETTINGS, AppArgs
from fuseline.deploy.ray.capacity import Capacity, capacity_of
from fuseline.serve.errors import InputError
from fuseline.serve.settings import Settings


def args(**given: Any) -> AppArgs:
    return AppArgs.model_validate({"package": "/models/a"} | given)


def test_arguments_of_a_command_line_are_texts_and_become_what_they_stand_for() -> None:
    given = args(max_batch="16", num_gpus="0.5", fast_decode="true", target_wait_ms="20")
    assert (given.settings().max_batch, given.num_gpus, given.settings().fast_decode) == (16, 0.5, True)
    assert given.package == Path("/models/a")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"pakage": "/x"}, r"pakage is no argument of this application; there are package, name, backend, "),
        ({"max_batch": "many"}, r"max_batch was given 'many': input should be a valid integer"),
        ({"max_batch": 0}, r"--max-batch was given 0: input should be greater than or equal to 1"),
        ({"backend": "torch"}, r"--backend was given 'torch': input should be 'auto', "),
        ({"num_gpus": -1}, r"num_gpus was given -1: input should be greater than or equal to 0"),
        ({"num_gpus": 1.5}, r"num_gpus was given 1.5: a replica gets a part of one GPU or whole ones; give 0.25, 1, 2"),
        ({"num_cpus": "nan"}, r"num_cpus was given 'nan': input should be a finite number"),
        ({"min_replicas": 0}, r"min_replicas was given 0: input should be greater than or equal to 1"),
        (
            {"min_replicas": 3, "max_replicas": 2},
            r"given 2: expected at least min_replicas, which is 3",
        ),
        ({"target_busy": 1.5}, r"target_busy was given 1.5: input should be less than or equal to 1"),
        ({"max_images_per_request": 9999}, r"max_images_per_request \(9999\) is above max_queue_rows"),
        ({"package": None}, r"package was given None: input is not a valid path"),
    ],
)
def test_a_wrong_argument_is_told_in_one_line(given: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as raised:
        args(**given)
    assert "\n" not in str(raised.value)


def test_a_missing_package_is_told_in_one_line() -> None:
    with pytest.raises(InputError, match=r"^package is missing: give package=/models/resnet18, a folder that fuseline"):
        AppArgs.model_validate({})


def test_what_is_no_set_of_arguments_is_told_in_one_line() -> None:
    with pytest.raises(InputError, match=r"^the arguments was given 'x': input should be a valid dictionary"):
        AppArgs.model_validate("x")


def test_every_argument_that_is_a_setting_reaches_it() -> None:
    assert set(_SETTINGS) <= set(Settings.model_fields) & set(AppArgs.model_fields)
    given = {"max_queue_rows": 500, "max_queue_ms": 100.0, "lanes": 2, "decode_threads": 3, "drain_timeout_s": 5.0}
    settings = args(**given).settings()
    assert {name: getattr(settings, name) for name in given} == given


def test_a_replica_takes_no_more_threads_than_the_cpus_that_it_was_given() -> None:
    assert [(s.threads, s.decode_threads) for s in (args(num_cpus=n).settings() for n in (0, 0.5, 1, 3.7))] == [
        (1, 1),
        (1, 1),
        (1, 1),
        (3, 3),
    ]
    assert args(num_cpus=4, threads=2).settings().threads == 2


def test_a_replica_shares_no_memory_and_opens_no_port_of_its_own() -> None:
    settings = args().settings()
    assert settings.why_no_shared_memory is not None
    assert not settings.has_console
    assert settings.http_port == 0


def test_ongoing_requests_fill_two_batches_of_each_lane_and_every_decoding_thread() -> None:
    assert Capacity(lanes=2, max_batch=32, decode_threads=4).requests == 132
    assert args(lanes=2, max_batch=16, decode_threads=3).ongoing_requests == 67
    assert args(max_ongoing_requests=7).ongoing_requests == 7


def test_lanes_that_are_measured_at_the_start_count_as_the_most_there_may_be() -> None:
    settings = Settings(threads=8, decode_threads=1)
    assert capacity_of(settings, has_gpu=False) == (8, 32, 1)
    assert capacity_of(settings, has_gpu=True) == (2, 32, 1)
    assert capacity_of(Settings(threads=1, decode_threads=1), has_gpu=False) == (1, 32, 1)


def test_ray_waits_for_longer_than_a_drain_may_take() -> None:
    assert args(drain_timeout_s=20).shutdown_timeout_s > 20


def test_the_page_names_every_argument_and_no_other() -> None:
    page = (Path(__file__).resolve().parents[3] / "docs/ray.md").read_text()
    section = page.partition("## Arguments")[2].partition("\n## ")[0]
    first = [row.split("|")[1] for row in section.splitlines() if row.startswith("| `")]
    assert sorted(re.findall(r"`(\w+)`", "".join(first))) == sorted(AppArgs.model_fields)
