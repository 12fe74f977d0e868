"""Streams that are told when their tokens no longer suffice, in virtual time."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from fuseline.serve.access.gate import Gate
from fuseline.serve.access.passes import Passes
from fuseline.serve.access.roles import Role
from fuseline.serve.access.token_file import add_line, new_token, token_line
from fuseline.serve.errors import ForbiddenError, FuselineError, UnauthenticatedError
from tests.fakes.virtual_time import VirtualLoop, run_in_virtual_time
from tests.serve.access.token_files import TokenFile, withdraw, written_token_file

START = datetime(2027, 1, 30, 23, 59, 0, tzinfo=UTC).timestamp()
MIDNIGHT = datetime(2027, 1, 31, tzinfo=UTC)


class Door:
    """A gate, the streams that it has let in, and what they were told and when."""

    def __init__(self, file: TokenFile, loop: VirtualLoop) -> None:
        self.loop = loop
        self.set_back_s = 0.0
        self.counted: list[str] = []
        self.file = file
        self.gate = Gate(
            file.path, self.counted.append, clock=loop.time, now=lambda: START + loop.time() - self.set_back_s
        )
        self.passes = Passes(self.gate)
        self.told: list[tuple[str, FuselineError, float]] = []

    def open(self, name: str, token: str, needed: Role = Role.INFER) -> Callable[[], None]:
        """Let in a stream, and return what forgets it."""
        authorization = [f"Bearer {token}"]
        self.gate.identify(authorization)
        held = self.gate.pass_of(authorization, needed, "ClassifyStream")

        def end(error: FuselineError) -> None:
            self.told.append((name, error, self.loop.time()))

        self.passes.add(held, end)
        return lambda: self.passes.remove(held, end)

    @property
    def names_told(self) -> set[str]:
        return {name for name, _, _ in self.told}


def behind(file: TokenFile, main: Callable[[Door], Awaitable[None]]) -> None:
    run_in_virtual_time(lambda loop: main(Door(file, loop)))


@pytest.fixture
def file(tmp_path: Path) -> TokenFile:
    return written_token_file(tmp_path)


def without(file: TokenFile, name: str) -> str:
    return "".join(line for line in file.path.read_text().splitlines(keepends=True) if not line.startswith(name))


def test_each_stream_of_a_withdrawn_token_is_told_once_within_two_seconds_and_others_are_not(file: TokenFile) -> None:
    async def main(door: Door) -> None:
        for number in range(3):
            door.open(f"shop {number}", file.infer)
        door.open("deployer", file.admin)
        await asyncio.sleep(10.5)
        assert door.told == []
        withdraw(file, "shop")
        await asyncio.sleep(2)
        assert door.names_told == {"shop 0", "shop 1", "shop 2"}
        assert {type(error) for _, error, _ in door.told} == {UnauthenticatedError}
        # Each has an error of its own, as each raises it.
        assert len({id(error) for _, error, _ in door.told}) == 3
        await asyncio.sleep(10)
        assert len(door.told) == 3
        assert door.counted == ["stream_ended"] * 3

    behind(file, main)


def test_calls_that_have_the_file_read_meanwhile_delay_that_by_a_second_at_most(file: TokenFile) -> None:
    async def main(door: Door) -> None:
        door.open("shop", file.infer)
        await asyncio.sleep(0.5)
        withdraw(file, "shop")
        begun = door.loop.time()
        while not door.told:
            await asyncio.sleep(0.07)
            door.gate.identify([f"Bearer {file.admin}"])
        assert door.told[0][2] - begun <= 2

    behind(file, main)


def test_an_expired_token_ends_its_streams_though_nobody_calls_and_the_file_is_gone(file: TokenFile) -> None:
    token = new_token()
    add_line(file.path, token_line(token, name="guest", role="infer", expires=MIDNIGHT))

    async def main(door: Door) -> None:
        door.open("guest", token)
        door.open("shop", file.infer)
        file.path.unlink()
        await asyncio.sleep(59.9)
        assert door.told == []
        await asyncio.sleep(1.2)
        ((name, error, when),) = door.told
        assert (name, str(error)) == (
            "guest",
            "the token of 'guest' expired at 2027-01-31T00:00:00+00:00; get a new one",
        )
        assert 60 <= when <= 61.1

    behind(file, main)


def test_an_expiry_that_is_changed_in_the_file_holds_for_open_streams(file: TokenFile) -> None:
    token = new_token()
    line = token_line(token, name="guest", role="infer", expires=MIDNIGHT)
    add_line(file.path, line)

    async def main(door: Door) -> None:
        door.open("guest", token)
        later = str(line).replace("2027-01-31T00:00:00", "2027-01-31T00:01:00")
        file.path.write_text(file.path.read_text().replace(str(line), later))
        await asyncio.sleep(119)
        assert door.told == []
        await asyncio.sleep(2.1)
        assert door.names_told == {"guest"}

    behind(file, main)


def test_a_wall_clock_that_is_set_back_keeps_no_stream_open(file: TokenFile) -> None:
    token = new_token()
    add_line(file.path, token_line(token, name="guest", role="infer", expires=MIDNIGHT))

    async def main(door: Door) -> None:
        door.open("guest", token)
        await asyncio.sleep(30)
        door.set_back_s = 86_400
        await asyncio.sleep(31.1)
        assert door.names_told == {"guest"}

    behind(file, main)


@pytest.mark.parametrize("broken", ["", "shop infer sha256:0", None])
def test_a_file_that_is_broken_or_gone_ends_no_stream_and_once_it_is_mended_it_counts(
    file: TokenFile, broken: str | None
) -> None:
    mended = without(file, "shop")

    async def main(door: Door) -> None:
        door.open("shop", file.infer)
        door.open("deployer", file.admin)
        if broken is None:
            file.path.unlink()
        else:
            file.path.write_text(broken)
        await asyncio.sleep(30)
        assert door.told == []
        file.path.write_text(mended)
        await asyncio.sleep(2)
        assert door.names_told == {"shop"}

    behind(file, main)


def test_after_a_rotation_streams_of_the_old_token_end_and_those_of_the_new_go_on(file: TokenFile) -> None:
    following = new_token()
    new_line = f"{token_line(following, name='shop', role='infer')}\n"

    async def main(door: Door) -> None:
        door.open("old", file.infer)
        old_lines = file.path.read_text()
        file.path.write_text(old_lines + new_line)
        await asyncio.sleep(2)
        door.open("new", following)
        assert door.told == []
        file.path.write_text(without(file, "shop") + new_line)
        await asyncio.sleep(2)
        assert door.names_told == {"old"}
        # A withdrawn token that comes back lets nobody in again who was told.
        file.path.write_text(old_lines)
        await asyncio.sleep(2)
        assert [name for name, _, _ in door.told] == ["old", "new"]

    behind(file, main)


def test_a_role_that_is_lowered_ends_the_streams_that_need_more(file: TokenFile) -> None:
    async def main(door: Door) -> None:
        door.open("needs admin", file.admin, Role.ADMIN)
        door.open("needs infer", file.admin)
        file.path.write_text(file.path.read_text().replace("deployer admin", "deployer infer"))
        await asyncio.sleep(2)
        ((name, error, _),) = door.told
        assert name == "needs admin"
        assert isinstance(error, ForbiddenError)
        assert str(error) == "ClassifyStream needs a token of the role admin; that of 'deployer' has the role infer"

    behind(file, main)


def test_streams_that_ended_by_themselves_are_told_nothing_and_leave_nothing_behind(file: TokenFile) -> None:
    async def main(door: Door) -> None:
        ends = [door.open(str(number), file.infer) for number in range(100)]
        for end in ends[:50]:
            end()
        withdraw(file, "shop")
        await asyncio.sleep(2)
        assert door.names_told == {str(number) for number in range(50, 100)}
        for end in ends:
            end()
        assert door.passes._ends == {}
        assert door.passes._timer is None
        # The next one that opens is watched again.
        door.open("deployer", file.admin)
        file.path.write_text(without(file, "deployer") + str(token_line(file.infer, name="shop", role="infer")))
        await asyncio.sleep(2)
        assert "deployer" in door.names_told

    behind(file, main)


def test_a_look_that_fails_is_not_the_last_one(file: TokenFile, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main(door: Door) -> None:
        met: list[object] = []
        door.loop.set_exception_handler(lambda _, context: met.append(context["exception"]))
        door.open("shop", file.infer)
        with monkeypatch.context() as patched:
            patched.setattr(door.gate, "refusal", lambda _: 1 / 0)
            await asyncio.sleep(3.5)
        assert [type(error) for error in met] == [ZeroDivisionError] * 3
        withdraw(file, "shop")
        await asyncio.sleep(2)
        assert door.names_told == {"shop"}

    behind(file, main)


def test_the_log_says_how_many_streams_end_and_no_token_and_no_hash(
    file: TokenFile, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)

    async def main(door: Door) -> None:
        door.open("1", file.infer)
        door.open("2", file.infer)
        withdraw(file, "shop")
        await asyncio.sleep(2)

    behind(file, main)
    assert "streams of ClassifyStream that are ended: 2, as the token that opened this stream has been" in caplog.text
    assert "fuseline_" not in caplog.text
    assert "sha256" not in caplog.text
