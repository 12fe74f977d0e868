"""The routes and shadows that a server's settings ask for."""

from prometheus_client import CollectorRegistry

from fuseline.serve.metrics.routing_metrics import AliasMetrics, ShadowMetrics
from fuseline.serve.repository import Repository
from fuseline.serve.routing.routes import Routes
from fuseline.serve.routing.shadows import Shadows
from fuseline.serve.settings import Settings


def routes_of(settings: Settings, repository: Repository, registry: CollectorRegistry) -> Routes:
    """Return the routes to `repository`; `registry` shows the metrics of aliases, if there are any."""
    aliases = settings.aliases
    return Routes(repository, aliases, AliasMetrics(registry)) if aliases else Routes(repository)


def shadows_of(settings: Settings, repository: Repository, registry: CollectorRegistry) -> Shadows | None:
    """Return the shadows, whose metrics `registry` shows; None: there are none.

    A request of the most images that are taken finds room if nothing else waits.
    """
    shadows = settings.shadows
    if not shadows:
        return None
    return Shadows(shadows, repository, ShadowMetrics(registry), max_rows=settings.max_images_per_request)
