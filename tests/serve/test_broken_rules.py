"""Data that breaks rules is told in one line, whatever it holds."""

import json

import pytest
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from fuseline.serve.broken_rules import broken_rules


class Book(BaseModel):
    model_config = ConfigDict(extra="forbid")

    pages: list[int] = Field(max_length=20)

    @model_validator(mode="after")
    def _has_pages(self) -> "Book":
        if not self.pages:
            raise ValueError("a book without pages")
        return self


def told(data: object, **options: object) -> str:
    with pytest.raises(ValidationError) as caught:
        Book.model_validate_json(json.dumps(data))
    return broken_rules(caught.value, **options)  # type: ignore[arg-type]


def test_each_rule_is_told_with_its_place_and_one_of_the_whole_by_its_name() -> None:
    assert told({"pages": [1, "x"]}).startswith("pages.1: Input should be a valid integer")
    assert told({"pages": []}, whole="the book") == "the book: Value error, a book without pages"


def test_of_many_rules_the_first_are_told_and_the_others_counted() -> None:
    many = told({"pages": ["x"] * 7}, most=2)
    assert [rule[:8] for rule in many.split("; ")] == ["pages.0:", "pages.1:", "and 5 mo"]
    assert many.endswith("and 5 more")


@pytest.mark.parametrize(
    "name", ["a\nb", "\x1b[31m", "\u2028", "x" * 10_000], ids=["two lines", "colour", "separator", "long"]
)
def test_a_name_that_nobody_can_print_stays_one_short_line(name: str) -> None:
    line = told({"pages": [1], name: 1})
    assert line.isprintable()
    assert len(line) < 400
