"""The work of `fuseline classify`: files in, a table or JSON lines out, in the order of the files."""

import heapq
import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.bar import Bar
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fuseline.serve.client import Client, Prediction, StreamAnswer
from fuseline.serve.errors import InputError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")

LABEL_HOLDS_FROM = 0.5

_DEFAULT_TOP_K = 5
_MAX_LABEL_WIDTH = 32
_BAR_WIDTH = 30


def classify_files(
    paths: Sequence[Path], *, address: str, model: str, top_k: int | None, as_json: bool, **connection: Any
) -> int:
    """Classify every file, print the answers to stdout and the failures to stderr, and return the exit code.

    `model` is a name, or `NAME:VERSION`; `connection` are further arguments of `Client`.

    For a multi-label model a table has `yes` beside labels of probability 0.5 or more. Open assumptions of the model's
    export are written to stderr first; in JSON they are among each image's values, for programs.

    The exit code is 0, or that of the worst failure; a failed image doesn't keep the others from being answered.

    Raises:
        FuselineError: nothing can be answered: no server, an unknown model, an empty folder, a wrong `top_k`.
    """
    files = image_files(paths)
    console = Console(highlight=False)
    exit_code = 0
    name, _, version = model.partition(":")
    with Client(address, **connection) as client:
        served = client.model(name, version)
        if top_k is None:
            # In a multi-label model more labels may hold than are shown otherwise.
            is_multi_label = served.task == "multi-label"
            requested = len(served.labels) if is_multi_label else min(_DEFAULT_TOP_K, len(served.labels))
        elif 1 <= top_k <= len(served.labels):
            requested = top_k
        else:
            raise InputError(f"--top-k {top_k}: {served.name} has {len(served.labels)} classes; give 1 to that many")
        assumed = [f"{assumption.key}={assumption.value}" for assumption in served.assumptions if assumption.is_open]
        if assumed and not as_json:
            sys.stderr.write(
                f"warning: {served.name}: assumed at its export and settled by nothing: {', '.join(assumed)}; its "
                "server's log says what each means\n"
            )
        label_width = min(max(map(len, served.labels)), _MAX_LABEL_WIDTH)
        for item in _in_order(client.classify_stream(files, top_k=requested, model=name, version=version)):
            file = files[item.position]
            predictions = () if item.answer is None else item.answer.results[0].predictions
            if top_k is None:
                holding = sum(prediction.probability >= LABEL_HOLDS_FROM for prediction in predictions)
                predictions = predictions[: max(holding, _DEFAULT_TOP_K)]
            if as_json:
                model_facts = {"task": served.task} | ({"assumptions": assumed} if assumed else {})
                sys.stdout.write(json.dumps(_json_object(file, item, predictions, model_facts)) + "\n")
            elif item.answer is not None:
                _print_table(console, file, predictions, label_width, served.task)
            if item.error is not None:
                sys.stderr.write(f"error: {file}: {item.error}\n")
                exit_code = max(exit_code, item.error.exit_code)
    return exit_code


def image_files(paths: Sequence[Path]) -> list[Path]:
    """Return `paths` with each folder replaced by the image files in and below it, sorted.

    Raises:
        InputError: a folder holds no image file.
    """
    files: list[Path] = []
    for path in paths:
        if not path.is_dir():
            files.append(path)
            continue
        inside = sorted(file for file in path.rglob("*") if file.suffix.lower() in IMAGE_SUFFIXES and file.is_file())
        if not inside:
            raise InputError(f"{path} holds no image; looked for {', '.join(IMAGE_SUFFIXES)} in it and below")
        files += inside
    return files


def _in_order(answers: Iterable[StreamAnswer]) -> Iterator[StreamAnswer]:
    early: list[tuple[int, StreamAnswer]] = []
    due = 0
    for answer in answers:
        heapq.heappush(early, (answer.position, answer))
        while early and early[0][0] == due:
            yield heapq.heappop(early)[1]
            due += 1


def _print_table(console: Console, file: Path, predictions: Sequence[Prediction], label_width: int, task: str) -> None:
    table = Table.grid(padding=(0, 1))
    table.add_column(width=label_width, no_wrap=True, overflow="ellipsis")
    table.add_column(width=_BAR_WIDTH)
    table.add_column(justify="right")
    for prediction in predictions:
        row = (
            Text(prediction.label),
            Bar(1.0, 0.0, prediction.probability, width=_BAR_WIDTH, color="green"),
            f"{prediction.probability:.1%}",
        )
        # In a multi-label model the most probable label may not hold, and several may.
        holds = () if task == "single-label" else ("yes" if prediction.probability >= LABEL_HOLDS_FROM else "no",)
        table.add_row(*row, *holds)
    console.print(Text(str(file), style="bold"), soft_wrap=True)
    console.print(table)


def _json_object(
    file: Path, item: StreamAnswer, predictions: Sequence[Prediction], model_facts: Mapping[str, object]
) -> dict[str, object]:
    if item.answer is None:
        return {"image": str(file), "error": str(item.error)}
    answer = item.answer
    return {
        "image": str(file),
        "model": answer.model,
        "model_version": answer.model_version,
        **({"served_model": answer.served_model} if answer.served_model else {}),
        **model_facts,
        "predictions": [{"index": p.index, "label": p.label, "probability": p.probability} for p in predictions],
        "timing": {
            "preprocess_ms": answer.preprocess_ms,
            "queue_ms": answer.queue_ms,
            "compute_ms": answer.compute_ms,
            "batch_rows": answer.batch_rows,
        },
    }
