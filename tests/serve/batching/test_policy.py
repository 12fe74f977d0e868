import math

import pytest

from fuseline.serve.batching.policy import DEFAULT_BUCKETS, BatchPolicy, CpuBatching, buckets_up_to

SECONDS = {bucket: 0.015 * bucket for bucket in (1, 2, 4, 8, 16)}


@pytest.mark.parametrize(
    ("max_batch", "buckets"),
    [(1, (1,)), (2, (1, 2)), (3, (1, 2, 3)), (32, (1, 2, 4, 8, 16, 32)), (33, (1, 2, 4, 8, 16, 32, 33))],
)
def test_buckets_are_the_powers_of_two_up_to_max_batch_and_itself(max_batch: int, buckets: tuple[int, ...]) -> None:
    assert buckets_up_to(max_batch) == buckets


def test_a_policy_puts_its_buckets_in_order() -> None:
    assert BatchPolicy((8, 3, 8), max_queue_rows=1).buckets == (3, 8)


@pytest.mark.parametrize(("unsaturated_rows", "rows"), [(None, 8), (2, 2), (20, 8)])
def test_small_batches_are_no_larger_than_the_largest(unsaturated_rows: int | None, rows: int) -> None:
    policy = BatchPolicy((1, 8), max_queue_rows=1, unsaturated_rows=unsaturated_rows)
    assert policy.small_batch_rows == rows


@pytest.mark.parametrize(("side", "largest"), [(32, 32), (112, 32), (224, 16), (320, 4), (1024, 1)])
def test_on_a_cpu_a_batch_holds_as_many_pixels_as_it_gains_from(side: int, largest: int) -> None:
    assert CpuBatching().buckets(side * side)[-1] == largest
    assert largest in DEFAULT_BUCKETS


@pytest.mark.parametrize(
    ("side", "cores", "seconds_a_row", "rows"),
    [
        (224, 2, 0.015, 4),
        (224, 1, 0.015, 2),
        (224, 1, 0.004, None),
        (224, 3, 0.015, 8),
        (224, 16, 0.015, None),
        (112, 1, 0.002, 8),
        (640, 1, 0.1, 1),
        (32, 1, 0.015, None),
    ],
)
def test_on_a_cpu_small_batches_give_each_core_two_pictures_unless_the_network_is_fast(
    side: int, cores: int, seconds_a_row: float, rows: int | None
) -> None:
    seconds_per_bucket = {bucket: bucket * seconds_a_row for bucket in (1, 2, 4, 8, 16)}
    assert CpuBatching().unsaturated_rows(side * side, cores, seconds_per_bucket) == rows


@pytest.mark.parametrize(("max_delay_ms", "rows"), [(0.0, 4), (5.0, None)])
def test_batches_are_small_on_a_cpu_unless_fuller_ones_are_asked_for(max_delay_ms: float, rows: int | None) -> None:
    asked = BatchPolicy(tuple(SECONDS), max_queue_rows=9, max_queue_ms=7.0, max_delay_ms=max_delay_ms)
    cpu = CpuBatching(inline_below_ms=math.pi)
    policy = cpu.refined(asked, row_pixels=224 * 224, cores=2, seconds_per_bucket=SECONDS)
    assert policy == BatchPolicy(
        tuple(SECONDS),
        max_queue_rows=9,
        max_queue_ms=7.0,
        max_delay_ms=max_delay_ms,
        unsaturated_rows=rows,
        inline_below_ms=math.pi,
    )


@pytest.mark.parametrize(
    ("max_batch", "buckets"),
    [
        (1, (1,)),
        (2, (1, 2)),
        (3, (1, 2, 3)),
        (4, (1, 2, 3, 4)),
        (16, (1, 2, 3, 4, 6, 8, 12, 16)),
        (20, (1, 2, 3, 4, 6, 8, 12, 16, 20)),
    ],
)
def test_a_cpu_has_sizes_between_the_powers_of_two(max_batch: int, buckets: tuple[int, ...]) -> None:
    assert CpuBatching().buckets(224 * 224, max_batch) == buckets
