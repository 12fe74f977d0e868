"""What Fuseline's HTML pages share: escaping, figures and the look (`page.css.j2`)."""

from functools import cache

from jinja2 import Environment, PackageLoader


@cache
def page_environment() -> Environment:
    """Return the templates of this package; they escape every value, as names come from files that anyone made."""
    environment = Environment(
        loader=PackageLoader("fuseline.export", "."), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["mib"] = lambda size: f"{size / 2**20:.1f} MiB"
    environment.filters["figure"] = lambda value: f"{value:.3g}"
    environment.filters["percent"] = lambda value: f"{value:.2%}"
    environment.filters["count"] = lambda value: f"{value:,}"
    environment.filters["sentence"] = _sentence
    return environment


def _sentence(text: str) -> str:
    """Return `text` with a capital and a full stop."""
    return f"{text[:1].upper()}{text[1:].rstrip('.')}."
