"""A page of the browser, and all that must not happen in it: errors, breaches of its policy, requests elsewhere."""

import base64
import mimetypes
import re
import time
from pathlib import Path
from typing import Any, Literal

from playwright.sync_api import ConsoleMessage, JSHandle, Locator, Page, Request, expect

_TRANSFER = """
files => {
  const transfer = new DataTransfer();
  for (const {name, type, base64} of files) {
    const bytes = Uint8Array.from(atob(base64), character => character.charCodeAt(0));
    transfer.items.add(new File([bytes], name, {type}));
  }
  return transfer;
}
"""
_TELL_VIOLATIONS = """
document.addEventListener("securitypolicyviolation", event =>
  tellViolation(`${event.effectiveDirective} by ${event.blockedURI || event.sourceFile}: ${event.sample}`));
"""
_FAILED_LOAD = "Failed to load resource: "
_CALLS = r"v[12]/|console/(events|server|load|models/)"
"""Paths of what the page asks for, unlike those of its files."""


class WatchedPage:
    """A page at `origin`, whose faults are kept for `check`."""

    def __init__(self, page: Page, origin: str) -> None:
        self.page = page
        self.origin = origin
        self.faults: list[str] = []
        self._expected: list[re.Pattern[str]] = []
        page.on("console", self._on_console)
        page.on("pageerror", lambda error: self.faults.append(f"an error in a script: {error}"))
        page.on("request", self._on_request)
        page.expose_function("tellViolation", lambda told: self.faults.append(f"against the policy: {told}"))
        page.add_init_script(_TELL_VIOLATIONS)

    def expect_failed_calls(self, why: str) -> None:
        """Let calls fail with `why`, such as "401" or "net::ERR_"; the browser tells of each. Files must not fail."""
        self._expected.append(re.compile(rf"{_FAILED_LOAD}.*{re.escape(why)}.*/({_CALLS})"))

    def expect(self, pattern: str) -> None:
        """Let faults of that pattern happen."""
        self._expected.append(re.compile(pattern))

    def until_fault(self, pattern: str, timeout_s: float = 10) -> None:
        """Wait for a fault of that pattern."""
        until = time.monotonic() + timeout_s
        while not any(re.search(pattern, fault) for fault in self.faults):
            assert time.monotonic() < until, f"{pattern!r} never came, but {self.faults}"
            # Events of the browser are heard while it is waited for.
            self.page.wait_for_timeout(20)

    def check(self) -> None:
        """Fail if anything has happened that must not."""
        unexpected = [fault for fault in self.faults if not any(each.search(fault) for each in self._expected)]
        assert not unexpected, "\n".join(unexpected)

    def open(self) -> "WatchedPage":
        """Load the page."""
        self.page.goto(f"{self.origin}/")
        return self

    def ready(self) -> "WatchedPage":
        """Return once it is connected and knows what is served."""
        expect(self.connection).to_have_text("Connected")
        expect(self.page.get_by_role("combobox", name="Model")).to_be_visible()
        return self

    def section(self, name: Literal["Try", "Batches", "Latency", "Models"]) -> Locator:
        """The part of the page of that heading."""
        return self.page.get_by_role("region", name=name, exact=True)

    @property
    def connection(self) -> Locator:
        """What the header says of the connection to the server."""
        return self.page.locator("header").get_by_role("status")

    @property
    def answer(self) -> Locator:
        """The answer that is open."""
        return self.section("Try").get_by_role("region", name="Answer")

    @property
    def answers(self) -> Locator:
        """The last answers, newest first."""
        return self.section("Try").get_by_role("list", name="Last answers").get_by_role("button")

    @property
    def batch_table(self) -> Locator:
        """The latest batches as a table, once `open_table` has opened it."""
        return self.section("Batches").get_by_role("table")

    @property
    def own_batches(self) -> Locator:
        """Its rows of batches that have a picture of this page and are lit up."""
        return self.batch_table.locator("tbody tr").filter(has=self.page.get_by_role("cell", name="yours", exact=True))

    @property
    def readout(self) -> Locator:
        """The numbers of the batch that is chosen in the strip."""
        return self.section("Batches").locator(".readout")

    @property
    def activity(self) -> Locator:
        """What the strip says of this moment."""
        return self.section("Batches").locator("button[aria-pressed] + span")

    @property
    def batches_summary(self) -> Locator:
        """The description of the strip for who listens, renewed every few seconds."""
        return self.page.locator("#batches-summary")

    @property
    def batches_counted(self) -> int:
        """The number of batches in it."""
        found = re.search(r"The last (\d+)", self.batches_summary.inner_text())
        return int(found[1]) if found else 0

    def until_more_batches(self, number: int) -> None:
        """Wait until the strip has more than `number`."""
        told = "Number(/The last (\\d+)/.exec(document.querySelector('#batches-summary').textContent)?.[1])"
        self.page.wait_for_function(f"number => {told} > number", arg=number, timeout=20_000)

    def open_table(self) -> None:
        """Show the latest batches as a table."""
        self.section("Batches").get_by_text("batches as a table").click()

    def load(self, rate: int, *, wait: bool = True) -> None:
        """Have the page put a load of that rate at least on the server, and wait for its end or not."""
        latency = self.section("Latency")
        slider = latency.get_by_role("slider", name="Rate")
        expect(slider).to_be_enabled()
        slider.focus()
        self.page.keyboard.press("Home")
        while self.load_rate() < rate:
            self.page.keyboard.press("ArrowRight")
        latency.get_by_role("button", name="Load for").click()
        if wait:
            self.load_ended()

    def load_rate(self) -> int:
        """Requests a second that the slider stands at."""
        said = self.section("Latency").get_by_role("slider", name="Rate").get_attribute("aria-valuetext")
        return int("".join(filter(str.isdigit, said or "")))

    def load_briefly(self, rate: int) -> None:
        """The same, until batches of it are seen."""
        self.load(rate, wait=False)
        expect(self.activity).to_contain_text("batches/s")
        self.section("Latency").get_by_role("button", name="Stop").click()
        expect(self.section("Latency").locator("p[role=status]")).to_contain_text("Stopped")

    def load_ended(self) -> str:
        """Wait for the end of a load; return what came of it."""
        answer = self.section("Latency").locator("p[role=status]")
        expect(answer).to_contain_text("answered", timeout=20_000)
        return answer.inner_text()

    def tab_to(self, target: Locator, *, back: bool = False) -> None:
        """Press Tab, as who has no mouse, until `target` has the focus."""
        for _ in range(80):
            self.page.keyboard.press("Shift+Tab" if back else "Tab")
            if target.evaluate("element => element === document.activeElement"):
                return
        raise AssertionError(f"Tab doesn't lead to {target}")

    def top(self) -> dict[str, str]:
        """The first row of the open answer's table: heading of each column, such as `Served`, to text."""
        return rows_of(self.answer.get_by_role("table", name="Most probable classes"))[0]

    def transfer(self, *files: Path | tuple[str, bytes]) -> JSHandle:
        """A DataTransfer with `files`, as a drop or the clipboard has it."""
        return self.page.evaluate_handle(_TRANSFER, [_file(each) for each in files])

    def drop(self, *files: Path | tuple[str, bytes]) -> None:
        """Drop files on the part that takes pictures."""
        transfer = self.transfer(*files)
        for event in ("dragenter", "dragover", "drop"):
            self.section("Try").dispatch_event(event, {"dataTransfer": transfer})

    def drop_from_desktop(self, *paths: Path) -> None:
        """Drop files or folders as a file manager does it: the browser itself reads them."""
        box = self.section("Try").bounding_box()
        assert box is not None
        session = self.page.context.new_cdp_session(self.page)
        where = {"x": box["x"] + box["width"] / 2, "y": box["y"] + min(box["height"], 120) / 2}
        data = {"items": [], "files": [str(path.resolve()) for path in paths], "dragOperationsMask": 1}
        for type in ("dragEnter", "dragOver", "drop"):
            session.send("Input.dispatchDragEvent", {"type": type, **where, "data": data})
        session.detach()

    def paste(self, *files: Path | tuple[str, bytes]) -> None:
        """Paste files, as Ctrl-V does."""
        self.page.evaluate(
            "clipboardData => document.body.dispatchEvent(new ClipboardEvent('paste', "
            "{clipboardData, bubbles: true, cancelable: true}))",
            self.transfer(*files),
        )

    def choose(self, *paths: Path) -> None:
        """Choose files in the dialogue of the file input."""
        self.section("Try").locator("input[type=file]:not([webkitdirectory])").set_input_files(list(paths))

    def _on_console(self, message: ConsoleMessage) -> None:
        if message.type in {"error", "warning", "assert"}:
            self.faults.append(f"{message.text} ({message.location.get('url')})")

    def _on_request(self, request: Request) -> None:
        # What the page made itself is at blob: and data:.
        if not request.url.startswith((f"{self.origin}/", f"blob:{self.origin}/", "data:")):
            self.faults.append(f"a request elsewhere: {request.url}")


def _file(file: Path | tuple[str, bytes]) -> dict[str, Any]:
    name, content = (file.name, file.read_bytes()) if isinstance(file, Path) else file
    return {
        "name": name,
        "type": mimetypes.guess_type(name)[0] or "",
        "base64": base64.b64encode(content).decode(),
    }


def rows_of(table: Locator) -> list[dict[str, str]]:
    """Each row of a table's body: the heading of each column to the text of its cell."""
    headings = [each.strip() for each in table.locator("thead th, thead td").all_text_contents()]
    rows = table.locator("tbody tr")
    return [
        dict(zip(headings, (cell.strip() for cell in row.locator("th, td").all_text_contents()), strict=True))
        for row in rows.all()
    ]
