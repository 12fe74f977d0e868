"""The table of precisions, and what is read off it."""

from typing import get_args

import pytest

from fuseline.serve.precision import (
    CHOICES,
    GPU_CHOICES,
    PRECISIONS,
    GraphPrecision,
    PrecisionChoice,
    PrecisionName,
    chosen_unasked,
    listed,
    precision_of_type,
)


def test_every_name_has_its_row_in_the_order_in_which_help_and_errors_list_them() -> None:
    assert tuple(PRECISIONS) == get_args(PrecisionName) == tuple(row.name for row in PRECISIONS.values())
    assert CHOICES == get_args(PrecisionChoice) == ("auto", "fp32", "fp16", "bf16", "int8")
    assert listed(CHOICES) == "auto, fp32, fp16, bf16 or int8"
    assert GPU_CHOICES == ("auto", "fp16", "fp32", "int8")


def test_auto_takes_fp16_on_gpus_only_bf16_on_cpus_only_and_int8_nowhere() -> None:
    assert chosen_unasked("cpu") == ("bf16", "fp32")
    assert chosen_unasked("gpu") == ("fp16", "fp32")


def test_a_coarser_precision_is_let_differ_more() -> None:
    rows = tuple(PRECISIONS.values())
    assert [row.max_difference for row in rows] == sorted(row.max_difference for row in rows)
    # FP32 has the difference alone for a bar; the bars of the others are in the documentation.
    assert [row.min_agreement for row in rows] == [0, 0.995, 0.99, 0.98]
    assert [row.ties_agree for row in rows] == [False, True, True, False]


def test_all_but_bf16_have_artifacts_of_their_own() -> None:
    graphs = {row.name: row.graph for row in PRECISIONS.values()}
    assert graphs == {"fp32": "fp32", "fp16": "fp16", "bf16": "fp32", "int8": "int8"}
    assert {*graphs.values()} == {*get_args(GraphPrecision)}


@pytest.mark.parametrize(
    ("told", "name"), [("HALF", "fp16"), ("Half", "fp16"), ("Float", "fp32"), ("INT8", "int8"), ("BF16", "bf16")]
)
def test_types_are_told_as_tensorrt_and_its_inspector_spell_them(told: str, name: str) -> None:
    assert precision_of_type(told) == name
