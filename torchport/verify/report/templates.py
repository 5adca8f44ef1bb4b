"""Renders the Jinja templates of the reports.

render("torchport.verify.report", "parity.html.j2", certificate=certificate, graphs=[])
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jinja2 import Environment


def render(package: str, template: str, **values: Any) -> str:
    """The HTML of a template that lies in the folder of a package; values are escaped."""
    return str(_environment(package).get_template(template).render(**values))


@cache
def _environment(package: str) -> Environment:
    """One for each package and process: it keeps the templates that it has compiled."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    return Environment(
        loader=PackageLoader(package, "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
