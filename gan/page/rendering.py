"""HTML pages from Jinja2 templates. Each page is one file that loads nothing else."""

import base64
from pathlib import Path
from typing import Any

import jinja2

TEMPLATES = Path(__file__).parent / "templates"  # base.html with the styles, macros.html


def render(template: str, *folders: Path, **values: Any) -> str:
    """Return the page of a ``template`` in one of ``folders`` or in TEMPLATES. Texts among ``values`` are escaped."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([*folders, TEMPLATES]),
        autoescape=True,
        trim_blocks=True,
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
    )
    environment.filters["base64"] = lambda content: base64.b64encode(content).decode()
    return environment.get_template(template).render(**values)
