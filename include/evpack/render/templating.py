"""The one way a template becomes a page: escaped, strict about names, without script or network."""

from __future__ import annotations

from functools import cache
from typing import Any


def render(template: str, **values: Any) -> str:
    """One HTML document; a name that a template mistypes is an error."""
    return str(_environment().get_template(template).render(**values))


def number(value: float | None) -> str:
    """A figure in a table."""
    if value is None:
        return "not finite"
    return f"{value:.4g}" if abs(value) >= 1000 else f"{value:.4f}"


def interval(bounds: list[float] | None) -> str:
    """An interval in a table."""
    return "none" if bounds is None else f"{number(bounds[0])} to {number(bounds[1])}"


@cache
def _environment() -> Any:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    return Environment(
        loader=PackageLoader("evpack.render", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
