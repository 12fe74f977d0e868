"""`fuseline classify` against a real server."""

import json
import re
import socket
from pathlib import Path

import pytest

from tests.commands import Run
from tests.fakes.colours import LABELS, encoded, plain


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder with a picture of each colour, one of them further down, and a file that is none."""
    (tmp_path / "deep" / "er").mkdir(parents=True)
    for name, colour in (("a.png", "red"), ("b.JPG", "green"), ("deep/c.webp", "blue"), ("deep/er/d.jpeg", "dark")):
        suffix = Path(name).suffix[1:].upper().replace("JPG", "JPEG")
        (tmp_path / name).write_bytes(encoded(plain(colour, 16, 16), suffix))
    (tmp_path / "notes.txt").write_text("no picture")
    return tmp_path


def test_classify_prints_a_table_with_bars_most_probable_first(
    run_fuseline: Run, live_address: str, pictures: Path
) -> None:
    code, stdout, stderr = run_fuseline("classify", pictures / "a.png", "--top-k", 2, "--address", live_address)
    assert (code, stderr) == (0, "")
    title, first, second = stdout.splitlines()
    assert title == str(pictures / "a.png")
    assert re.fullmatch(r"red +█+\S* +9\d\.\d% *", first)
    assert re.fullmatch(r"\w+ +\S* +\d\.\d% *", second)
    assert first.count("█") > second.count("█")


def test_classify_searches_folders_in_order_and_json_gives_a_line_each(
    run_fuseline: Run, live_address: str, pictures: Path
) -> None:
    code, stdout, stderr = run_fuseline("classify", pictures, "--json", "--address", live_address)
    assert (code, stderr) == (0, "")
    lines = [json.loads(line) for line in stdout.splitlines()]
    assert [Path(line["image"]).name for line in lines] == ["a.png", "b.JPG", "c.webp", "d.jpeg"]
    assert [line["predictions"][0]["label"] for line in lines] == list(LABELS)
    assert all(len(line["predictions"]) == len(LABELS) for line in lines), "5 by default, or all if there are fewer"
    assert lines[0]["model"] == "colours"
    assert lines[0]["timing"]["compute_ms"] > 0


def test_a_bad_file_gets_a_line_the_others_are_answered_and_the_exit_code_is_2(
    run_fuseline: Run, live_address: str, pictures: Path
) -> None:
    paths = [pictures / "nowhere.png", pictures / "a.png", pictures / "notes.txt", pictures / "b.JPG"]
    code, stdout, stderr = run_fuseline("classify", *paths, "--json", "--address", live_address)
    assert code == 2
    lines = [json.loads(line) for line in stdout.splitlines()]
    assert [line["image"] for line in lines] == [str(path) for path in paths]
    assert ["error" in line for line in lines] == [True, False, True, False]
    missing, text = stderr.splitlines()
    assert re.fullmatch(rf"error: .*{re.escape(str(paths[0]))}.*No such file.*", missing)
    assert re.fullmatch(rf"error: {re.escape(str(paths[2]))}: .*JPEG, PNG or WebP.*", text)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--top-k", 0], "error: --top-k 0: colours has 4 classes"),
        (["--top-k", 5], "error: --top-k 5: colours has 4 classes"),
        (["--model", "cats"], "error: there is no model 'cats' here; served: colours"),
    ],
)
def test_a_wrong_option_is_one_line_and_2(
    run_fuseline: Run, live_address: str, pictures: Path, arguments: list[object], message: str
) -> None:
    code, stdout, stderr = run_fuseline("classify", pictures / "a.png", *arguments, "--address", live_address)
    assert (code, stdout) == (2, "")
    assert stderr.startswith(message)
    assert stderr.count("\n") == 1


def test_a_folder_without_images_is_one_line_and_2(run_fuseline: Run, live_address: str, tmp_path: Path) -> None:
    code, _, stderr = run_fuseline("classify", tmp_path, "--address", live_address)
    assert code == 2
    assert re.fullmatch(r"error: .* holds no image; looked for \.jpg.*\n", stderr)


def test_no_server_is_one_line_and_2(run_fuseline: Run, pictures: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{unused.getsockname()[1]}"
        code, stdout, stderr = run_fuseline("classify", pictures / "a.png", "--address", address)
    assert (code, stdout) == (2, "")
    assert re.fullmatch(rf"error: no server answers at {address} .*`fuseline serve`.*\n", stderr)


@pytest.mark.parametrize("flags", [("--top-k", 2), ("--json",)])
def test_classify_over_http_prints_what_it_prints_over_grpc(
    run_fuseline: Run, live_address: str, live_http_address: str, pictures: Path, flags: tuple[object, ...]
) -> None:
    damaged = pictures / "damaged.png"
    damaged.write_bytes(b"\x89PNG")
    over_grpc, over_http = (
        run_fuseline("classify", pictures, *flags, "--address", address)
        for address in (live_address, live_http_address)
    )
    assert over_http.exit_code == over_grpc.exit_code == 2
    timing = re.compile(r'"timing": {.*?}')
    assert timing.sub("", over_http.stdout) == timing.sub("", over_grpc.stdout)
    assert over_http.stderr == over_grpc.stderr
    assert str(damaged) in over_http.stderr
