"""Renders the pages from their templates; whatever is filled in is escaped."""

from pathlib import Path

import jinja2

from gkt_mpi import __version__

_TEMPLATES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
    autoescape=True,
    trim_blocks=True,
    lstrip_blocks=True,
)


def render_page(template: str, **content: object) -> str:
    """Return the page of a template as HTML; `content` are the template's variables."""
    return _TEMPLATES.get_template(template).render(version=__version__, **content)
