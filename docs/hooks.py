"""Hooks of mkdocs: fill the tables of settings.md, and include pages that live in the root of the repository."""

import importlib
import json
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # mkdocs runs as a program, which does not search the working directory


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Return the page with its markers replaced: ``<!-- settings MODULE.CLASS -->``, and lines of ``<!-- include FILE -->``."""
    markdown = re.sub(r"<!-- settings ([\w.]+)\.(\w+) -->", lambda found: settings_table(found[1], found[2]), markdown)
    return re.sub(r"<!-- include (\S+) -->.*", lambda found: included(found[1]), markdown)


def included(name: str) -> str:
    """Return a page of the repository's root, with its links to pages of docs/ made relative to docs/."""
    text = (ROOT / name).read_text().replace("](docs/", "](")
    return re.sub(r"\]\((CONTRIBUTING|SECURITY|CHANGELOG)\.md", lambda found: f"]({found[1].lower()}.md", text)


def settings_table(module: str, name: str) -> str:
    """Return a Markdown table of the settings of the dataclass ``module.name`` and of its sections."""
    from gan.utils.setting_fields import describe_settings

    rows = ["| setting | default | meaning | values |", "|---|---|---|---|"]
    for setting in describe_settings(getattr(importlib.import_module(module), name)):
        mark = " †" if setting.changeable else ""
        default = json.dumps(setting.default).strip('"')
        values = ", ".join(text for text in (setting.type, setting.range) if text)
        cells = [f"`{setting.key}`{mark}", f"`{default}`", setting.meaning, values]
        rows.append("| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |")
    return "\n".join(rows)
