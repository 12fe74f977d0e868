import json
from pathlib import Path
from typing import Any

import pytest

from fuseline.export.facts.labels import labels_from
from fuseline.serve.errors import InputError


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("labels.txt", "cat\ndog\nbig owl\n"),
        ("labels.txt", "\ufeffcat\r\n dog \r\nbig owl\r\n\r\n"),
        ("labels.json", '["cat", "dog", "big owl"]'),
        ("labels.json", '{"0": "cat", "2": "big owl", "1": "dog"}'),
        ("labels.json", '{"cat": 0, "big owl": 2, "dog": 1}'),
        ("index.json", '{"0": ["n1", "cat"], "1": ["n2", "dog"], "2": ["n3", "big owl"]}'),
        ("labels.txt", ' \n{"0": "cat", "2": "big owl", "1": "dog"}'),
    ],
)
def test_every_form_gives_labels_by_index(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8")
    assert labels_from(str(tmp_path / name), 3) == ("cat", "dog", "big owl")


def test_a_text_file_may_begin_with_a_bracket(tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_text("[unknown]\ncat\n")
    assert labels_from(str(tmp_path / "labels.txt"), 2) == ("[unknown]", "cat")


def test_imagenet_is_a_word_and_needs_a_thousand_classes() -> None:
    labels = labels_from("imagenet", 1000)
    assert (labels[0], labels[281], labels[999]) == ("tench", "tabby", "toilet tissue")
    with pytest.raises(InputError, match="1000 labels.*10 classes"):
        labels_from("imagenet", 10)


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (["cat", "dog"], "2 labels.*3 classes"),
        (["cat", "dog", 3], "3 is no text"),
        (["cat", "dog", ""], "class 2 is empty"),
        ({"0": "cat", "1": "dog", "3": "owl"}, "no label has the index 2"),
        ({"cat": 0, "dog": 1, "owl": 1}, "no label has the index 2"),
        ({"a": "cat", "1": "dog", "2": "owl"}, "'a' is no class index"),
        ({"0": "cat", "1": None, "2": "owl"}, "None is no text"),
    ],
)
def test_json_that_does_not_fit_is_refused(tmp_path: Path, content: Any, named: str) -> None:
    (tmp_path / "labels.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=named):
        labels_from(str(tmp_path / "labels.json"), 3)


@pytest.mark.parametrize("content", [b"\xff\xfe\x00a", b"x" * (2**20 + 1)])
def test_a_file_that_is_no_text_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "labels.txt").write_bytes(content)
    with pytest.raises(InputError, match="one label a line"):
        labels_from(str(tmp_path / "labels.txt"), 3)


def test_broken_json_and_a_missing_file_are_refused(tmp_path: Path) -> None:
    (tmp_path / "labels.json").write_text('{"0": "cat",')
    with pytest.raises(InputError, match="is no JSON"):
        labels_from(str(tmp_path / "labels.json"), 3)
    with pytest.raises(InputError, match="No such file"):
        labels_from(str(tmp_path / "nowhere.txt"), 3)
