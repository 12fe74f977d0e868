"""Fuseline on a Ray cluster: `serve run fuseline.deploy.ray:app package=/models/resnet18`.

`app` is imported when it is asked for, so that what writes a Serve config needs no Ray.
"""

from typing import Any

__all__ = ["app"]


def __getattr__(name: str) -> Any:
    """Return `app`. Raise `BackendUnavailableError` where Ray is missing, or older than what Fuseline works with."""
    if name != "app":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from fuseline.deploy.ray.ray_version import check_ray

    check_ray()
    from fuseline.deploy.ray.application import app

    return app
