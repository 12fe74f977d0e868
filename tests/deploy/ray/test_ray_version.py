from importlib.metadata import PackageNotFoundError

import pytest

import fuseline.deploy.ray.ray_version as ray_version
from fuseline.serve.errors import BackendUnavailableError


def missing(_name: str) -> str:
    raise PackageNotFoundError


def test_ray_that_is_missing_is_said_with_what_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_version, "version", missing)
    with pytest.raises(BackendUnavailableError, match=r"^Ray is not installed here.*pip install 'fuseline\[ray\]'$"):
        from fuseline.deploy.ray import app  # noqa: F401


@pytest.mark.parametrize("found", ["1.13.0", "2.9.3", "2.59.1"])
def test_an_older_ray_is_refused_by_its_version(found: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_version, "version", lambda _: found)
    with pytest.raises(BackendUnavailableError, match=rf"^Ray {found} is installed here.*needs 2.60 or later"):
        ray_version.check_ray()


@pytest.mark.parametrize("found", ["2.60.0", "2.61.0rc1", "3.0.0.dev0"])
def test_a_newer_ray_is_taken(found: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_version, "version", lambda _: found)
    ray_version.check_ray()


def test_the_package_has_nothing_else() -> None:
    with pytest.raises(ImportError, match="cannot import name 'nothing'"):
        from fuseline.deploy.ray import nothing  # noqa: F401
