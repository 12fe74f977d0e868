"""podman and buildah, as the container test drives them: made to work on a bare machine without a registry.

As root on Debian or Ubuntu what is missing is installed; elsewhere it is named.
"""

import json
import os
import re
import shutil
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType

ROOT = Path(__file__).parents[2]
WORK = ROOT / "build" / "container"

TOOLS = {"podman": "podman", "buildah": "buildah", "runc": "runc", "debootstrap": "debootstrap", "iptables": "iptables"}
"""Command: Debian's package of it. iptables is what podman publishes ports with."""

_CONTAINERS_CONF = """\
[containers]
# Limits above the machine's own, which are podman's defaults, can't be set everywhere.
default_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]
[engine]
runtime = "runc"
cgroup_manager = "{cgroup_manager}"
"""


class Container:
    """One container that `Podman.container` started."""

    def __init__(self, podman: "Podman", id: str) -> None:
        self.id = id
        self._podman = podman

    @property
    def log(self) -> str:
        """What it wrote, both streams."""
        return self._podman("logs", self.id, merge=True).stdout

    @property
    def running(self) -> bool:
        """Whether its process lives."""
        return self._podman("inspect", "--format", "{{.State.Running}}", self.id).stdout.strip() == "true"

    def exit_code(self, timeout_s: float = 60) -> int:
        """Wait for its end."""
        return int(self._podman("wait", self.id, timeout_s=timeout_s).stdout)

    def signal(self, name: str) -> None:
        """Send its first process a signal."""
        self._podman("kill", "--signal", name, self.id)

    def execute(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run `command` in it."""
        return self._podman("exec", self.id, *command, check=False)

    def health(self) -> str:
        """Run the image's health check now; return what it printed if it failed, else the empty string."""
        done = self._podman("healthcheck", "run", self.id, check=False)
        return "" if done.returncode == 0 else done.stdout + done.stderr

    def until_logged(self, text: str, timeout_s: float = 90) -> float:
        """Wait until `text` is in the log; return the seconds that took."""
        started = time.monotonic()
        while text not in self.log:
            assert self.running, f"it ended: {self.log}"
            assert time.monotonic() - started < timeout_s, f"{text!r} never came: {self.log}"
            time.sleep(0.1)
        return time.monotonic() - started


class Podman:
    """Calls podman with settings of its own; removes the containers that it started, by their ids."""

    def __init__(self) -> None:
        WORK.mkdir(parents=True, exist_ok=True)
        systemd = Path("/run/systemd/system").is_dir()
        configuration = WORK / "containers.conf"
        configuration.write_text(_CONTAINERS_CONF.format(cgroup_manager="systemd" if systemd else "cgroupfs"))
        self.environment = os.environ | {"CONTAINERS_CONF": str(configuration)}

    def __call__(
        self, *arguments: object, check: bool = True, merge: bool = False, timeout_s: float = 120
    ) -> subprocess.CompletedProcess[str]:
        """Run `podman ARGUMENTS`. `merge`: stderr into stdout, as it came."""
        done = subprocess.run(
            ["podman", *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT if merge else subprocess.PIPE,
            env=self.environment,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        assert done.returncode == 0 or not check, f"podman {arguments}: {done.stdout}{done.stderr}"
        return done

    @contextmanager
    def container(self, image: str, *command: str, flags: Sequence[object] = ()) -> Iterator[Container]:
        """Run `image` in the background; at the end remove the container and its unnamed volumes."""
        container = Container(self, self("run", "--detach", *flags, image, *command).stdout.strip())
        try:
            yield container
        finally:
            self("rm", "--force", "--time", 0, "--volumes", container.id)

    def finished(self, image: str, *command: str, flags: Sequence[object] = ()) -> tuple[int, str]:
        """Run `image`, which ends by itself; return its exit code and its log."""
        with self.container(image, *command, flags=flags) as container:
            return container.exit_code(), container.log

    def forget_containers_with(self, folder: Path) -> None:
        """Remove the containers that mount `folder`: those that a user's command started."""
        for id in self("ps", "--all", "--quiet", "--filter", f"volume={folder}").stdout.split():
            self("rm", "--force", "--time", 0, "--volumes", id)

    def image(self, name: str) -> dict[str, object]:
        """What podman knows of an image."""
        known: dict[str, object] = json.loads(self("image", "inspect", name).stdout)[0]
        return known

    def has_image(self, name: str) -> bool:
        """Whether an image is here."""
        return self("image", "exists", name, check=False).returncode == 0

    def build(self, target: str, name: str) -> float:
        """Build `target` of the Dockerfile as `name`, in place of an older one; return the seconds that it took."""
        old = self.image(name)["Id"] if self.has_image(name) else None
        started = time.monotonic()
        # Without a registry, and in places where containers can't be nested.
        buildah = ["buildah", "bud", "--isolation", "chroot", "--pull-never", "--format", "docker", "--target", target]
        log = WORK / f"build-{target}.log"
        with log.open("w") as stream:
            done = subprocess.run(
                [*buildah, *_build_flags(), "--tag", name, str(ROOT)],
                stdout=stream,
                stderr=subprocess.STDOUT,
                env=self.environment,
                timeout=1500,
                check=False,
            )
        assert done.returncode == 0, f"{log}:\n{log.read_text()[-4000:]}"
        if old not in (None, self.image(name)["Id"]):
            # One that a container still uses stays.
            self("rmi", old, check=False)
        return time.monotonic() - started

    def build_folder(self, folder: Path, name: str) -> None:
        """Build the Dockerfile of `folder`, which starts from an image that is here, as `name`."""
        buildah = ["buildah", "bud", "--isolation", "chroot", "--pull-never", "--format", "docker", "--tag", name]
        done = subprocess.run(
            [*buildah, str(folder)],
            capture_output=True,
            env=self.environment,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr


def install_tools(more: Mapping[str, str] = MappingProxyType({})) -> None:
    """Install what of `TOOLS` and `more` is missing; end with what to install where that can't be done."""
    missing = [package for command, package in {**TOOLS, **more}.items() if shutil.which(command) is None]
    if not missing:
        return
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        sys.exit(f"error: the container test needs {', '.join(missing)}; install them, or run it as root on Debian")
    print(f"installing {', '.join(missing)}", flush=True)
    apt = ["apt-get", "--quiet", "--quiet", "--yes"]
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    subprocess.run([*apt, "update"], env=environment, check=True, timeout=300)
    # What podman sets up networks with is among what it only recommends.
    extra = ["netavark"] if "podman" in missing else []
    install = [*apt, "install", "--no-install-recommends", *missing, *extra]
    subprocess.run(install, env=environment, check=True, timeout=600, stdout=subprocess.DEVNULL)


def base_image() -> str:
    """The image that the Dockerfile starts from."""
    named = re.search(r"^FROM (\S+) AS base$", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE)
    assert named is not None
    return named[1]


def provide_base_image(podman: Podman) -> str:
    """Have the Dockerfile's base image here, and return where it comes from.

    If it is not here and no registry answers, it is made from Debian's packages: the same release and Python, under the
    same name. Its archive is kept in build/.
    """
    name = base_image()
    if podman.has_image(name):
        return "was here"
    if _pulled(podman, name):
        return "pulled"
    archive = WORK / f"{re.sub(r'[^a-z0-9.]', '-', name)}.tar"
    if not archive.exists():
        _bootstrap(archive, suite=name.rpartition("-")[2])
    podman("import", archive, f"localhost/{name}", timeout_s=300)
    return "made by debootstrap"


def _pulled(podman: Podman, name: str) -> bool:
    try:
        return podman("pull", "--quiet", name, check=False, timeout_s=180).returncode == 0
    except subprocess.TimeoutExpired:
        return False


def _bootstrap(archive: Path, suite: str) -> None:
    with tempfile.TemporaryDirectory(prefix="fuseline-base-") as folder:
        root = Path(folder)
        command = ["debootstrap", "--variant=minbase", "--include=python3,python3-pip", suite, str(root)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr
        # As in the image that it stands for: `python`, and a pip that may install.
        (root / "usr/bin/python").symlink_to("python3")
        for marker in root.glob("usr/lib/python3*/EXTERNALLY-MANAGED"):
            marker.unlink()
        shutil.rmtree(root / "var/cache/apt/archives")
        partial = archive.with_suffix(".partial")
        subprocess.run(["tar", "--create", "--file", partial, "--directory", root, "."], check=True, timeout=300)
        partial.rename(archive)


def _build_flags() -> Iterator[str]:
    """What the machine has for `pip` lies outside the build: its certificates, and wheels of torch without CUDA."""
    bundle = os.environ.get("PIP_CERT") or _certificate_bundle()
    if bundle is not None:
        yield from ("--volume", f"{Path(bundle).parent}:{Path(bundle).parent}:ro", "--build-arg", f"PIP_CERT={bundle}")
    for folder in map(Path, _pip_find_links()):
        if folder.is_dir() and any(folder.glob("torch-*+cpu-*.whl")):
            yield from ("--volume", f"{folder}:{folder}:ro", "--build-arg", f"TORCH_WHEELS={folder}")
            return


def _certificate_bundle() -> str | None:
    paths = ssl.get_default_verify_paths()
    folder = Path(paths.capath or paths.openssl_capath).resolve()
    bundles = (Path(paths.cafile or paths.openssl_cafile), folder / "ca-certificates.crt")
    return next((str(bundle) for bundle in bundles if bundle.is_file()), None)


def _pip_find_links() -> list[str]:
    command = [sys.executable, "-m", "pip", "config", "get", "global.find-links"]
    configured = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    return (os.environ.get("PIP_FIND_LINKS") or configured.stdout).split()
