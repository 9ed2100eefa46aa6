"""How a page is put together: its template, filled with values of which every text is escaped.

A page loads nothing (its Content-Security-Policy forbids it) and runs no script, so whatever a class or a file is
called, its name stays a name.
"""

from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

MAX_NAME = 120


def render(template: str, **values: Any) -> str:
    """A page from a template of ``report/templates``; a value that the template names and nobody gave is an error."""
    return _environment().get_template(template).render(**values)


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("cmtvision.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(percent=percent, points=points, shorten=shorten, middle=shorten_middle, number=number)
    return environment


def percent(share: float | None, digits: int = 1) -> str:
    """A share within 0..1 as '12.3%', 'n/a' for none."""
    return "n/a" if share is None else f"{100 * share:.{digits}f}%"


def points(share: float, digits: int = 1) -> str:
    """A difference of shares as '+1.2' or '−1.2' percentage points."""
    return f"{100 * share:+.{digits}f}".replace("-", "\N{MINUS SIGN}")


def number(value: int) -> str:
    """A whole number with separators: '50,000'."""
    return f"{value:,}"


def shorten(text: str, length: int = MAX_NAME) -> str:
    """A text cut at its end."""
    return text if len(text) <= length else text[: length - 1] + "…"


def shorten_middle(text: str, length: int) -> str:
    """Shorten in the middle: names of classes often differ only at the end."""
    head = length * 3 // 5
    return text if len(text) <= length else f"{text[:head]}…{text[head + 1 - length :]}"
