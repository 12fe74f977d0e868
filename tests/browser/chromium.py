"""Debian's Chromium, which the browser test drives: installed as root on Debian where it is missing, else named.

python -m tests.browser.chromium    # installs it, or says what to install
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from playwright.sync_api import Browser, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome")
"""Commands of the distributions; the browsers that playwright would download are never used."""


def find_chromium() -> str | None:
    """The path of the first of `NAMES` that is here."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


def install_chromium() -> str:
    """Return Chromium's path; install it if it is missing, and end with what to install where that can't be done."""
    if path := find_chromium():
        return path
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        sys.exit(f"error: the browser test needs {', '.join(NAMES)}; install one, or run it as root on Debian")
    print("installing chromium", flush=True)
    apt = ["apt-get", "--quiet", "--quiet", "--yes"]
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    subprocess.run([*apt, "update"], env=environment, check=True, timeout=300)
    # Debian's Chromium comes without a font, and without one there is no text to look at.
    install = [*apt, "install", "--no-install-recommends", "chromium", "fonts-dejavu-core"]
    subprocess.run(install, env=environment, check=True, timeout=600, stdout=subprocess.DEVNULL)
    path = find_chromium()
    if path is None:
        sys.exit("error: apt-get installed chromium, but there is no such command on PATH")
    return path


@contextmanager
def running_chromium() -> Iterator[Browser]:
    """A browser without a window, ended at the end."""
    # Names of other sites that lead to this machine (example is nobody's, RFC 2606).
    args = ["--host-resolver-rules=MAP *.example 127.0.0.1"]
    # Chromium refuses to run its sandbox as root.
    args += ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=install_chromium(), args=args)
        try:
            yield browser
        finally:
            browser.close()


if __name__ == "__main__":
    print(install_chromium())
