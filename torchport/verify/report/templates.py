"""Renders the Jinja templates of the reports.

render("torchport.verify.report", "parity.html.j2", certificate=certificate, graphs=[])
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jinja2 import Environment


def render(package: str, template: str, **values: Any) -> str:
    """The HTML of a template in a package's folder; values are escaped."""
    return str(_environment(package).get_template(template).render(**values))


@cache
def _environment(package: str) -> Environment:
    """Jinja environment of a package, made once per process; it keeps compiled templates."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    return Environment(
        loader=PackageLoader(package, "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
