"""The two images, and a model package made with one of them; built once for all tests here."""

import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.container.podman import ROOT, WORK, Podman, install_tools, provide_base_image
from tests.measured import Facts, kept_facts

SERVE, EXPORT = "fuseline", "fuseline-export"
"""As the README calls them."""


@pytest.fixture(scope="session")
def facts() -> Iterator[Facts]:
    """What was measured: printed at the end and kept as build/container/measured.json."""
    yield from kept_facts(WORK / "measured.json")


@pytest.fixture(scope="session", autouse=True)
def tools() -> None:
    """What the checks run, whichever of them comes first: podman-compose too runs podman."""
    install_tools()


@pytest.fixture(scope="session")
def podman(facts: Facts) -> Podman:
    """podman with the base image."""
    podman = Podman()
    facts["base image"] = provide_base_image(podman)
    return podman


@pytest.fixture(scope="session")
def images(podman: Podman, facts: Facts) -> tuple[str, str]:
    """The images of targets `serve` and `export`, built at the same time: much of a build is downloading."""
    with ThreadPoolExecutor(2) as pool:
        took_s = tuple(pool.map(podman.build, ("serve", "export"), (SERVE, EXPORT)))
    facts["build of targets serve and export together, s"] = round(max(took_s))
    return SERVE, EXPORT


@pytest.fixture(scope="session")
def serve_image(images: tuple[str, str]) -> str:
    """The image of target `serve`."""
    return images[0]


@pytest.fixture(scope="session")
def export_image(images: tuple[str, str]) -> str:
    """The image of target `export`."""
    return images[1]


@pytest.fixture(scope="session")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's folder with a checkpoint, torchvision's ResNet-18 with random weights, and pictures."""
    folder = tmp_path_factory.mktemp("work")
    code = (
        "import sys, numpy as np, torch, torchvision\n"
        "from PIL import Image\n"
        "torch.manual_seed(0)\n"
        "torch.save(torchvision.models.resnet18().state_dict(), 'resnet18.pt')\n"
        "noise = np.random.default_rng(0).integers(0, 256, (4, 300, 400, 3), np.uint8)\n"
        "for n, pixels in enumerate(noise): Image.fromarray(pixels).save(f'picture{n}.jpg')\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=folder, check=True, timeout=120)
    # pytest makes its folders for their owner alone; the server's user is another.
    folder.chmod(0o755)
    return folder


@pytest.fixture(scope="session")
def readme_commands() -> list[str]:
    """The `docker run` lines of the README's section on the container."""
    section = (ROOT / "README.md").read_text().partition("\n## Container\n")[2].partition("\n## ")[0]
    return [line.strip() for line in section.splitlines() if line.startswith("    docker run")]


@pytest.fixture(scope="session")
def package(podman: Podman, export_image: str, work: Path, readme_commands: list[str]) -> Path:
    """The model package that the README's first command makes, typed as it stands there."""
    (command,) = [line for line in readme_commands if export_image in line.split()]
    assert "export --fp16 resnet18.pt" in command
    done = subprocess.run(
        typed(command), cwd=work, env=podman.environment, capture_output=True, text=True, timeout=600, check=False
    )
    podman.forget_containers_with(work)
    assert done.returncode == 0, done.stdout + done.stderr
    return work / "resnet18"


@pytest.fixture
def free_port() -> Callable[[], int]:
    """Gives a port that nothing listens on."""

    def port() -> int:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            number: int = probe.getsockname()[1]
            return number

    return port


def typed(command: str) -> list[str]:
    """`command` for a shell in which `docker` is podman, and is the process itself, so that signals reach it."""
    return ["bash", "-c", 'docker() { exec podman "$@"; }\n' + command]
