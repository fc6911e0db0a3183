"""One self-contained HTML page: no server, no network, readable on a phone, in light and in dark.

How it looks stands in templates/, which escape all they show but the plots (see charts.svg).
"""

import base64
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined

TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).parent / "templates"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
TEMPLATES.filters["as_data"] = lambda jpeg: (
    f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}"
)


class Section(NamedTuple):
    """A part of the page."""

    heading: str
    template: str  # a file of templates/, without its ending
    data: Any  # what that shows

    @property
    def place(self) -> str:
        """Where a link finds it."""
        return "".join(filter(str.isalnum, self.heading.lower()))


def page(title: str, sections: Iterable[Section]) -> str:
    """The whole text; sections without data are left out."""
    shown = [section for section in sections if section.data]
    return TEMPLATES.get_template("page.html.j2").render(title=title, sections=shown)
