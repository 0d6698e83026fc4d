"""Hooks of mkdocs: include pages that live in the root of the repository. Run as a program: write the tables of settings.md."""

import importlib
import json
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "settings.md"
sys.path.insert(0, str(ROOT))  # mkdocs runs as a program, which does not search the working directory


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Return the page with its lines of ``<!-- include FILE -->`` replaced by these files."""
    return re.sub(r"<!-- include (\S+) -->.*", lambda found: included(found[1]), markdown)


def included(name: str) -> str:
    """Return a page of the repository's root, with its links to pages of docs/ made relative to docs/."""
    text = (ROOT / name).read_text().replace("](docs/", "](")
    return re.sub(r"\]\((CONTRIBUTING|SECURITY|CHANGELOG)\.md", lambda found: f"]({found[1].lower()}.md", text)


def with_settings(markdown: str) -> str:
    """Return the page with present tables between ``<!-- settings MODULE.CLASS -->`` and ``<!-- /settings -->``."""
    return re.sub(
        r"(<!-- settings ([\w.]+)\.(\w+) -->\n).*?(<!-- /settings -->)",
        lambda found: f"{found[1]}\n{settings_table(found[2], found[3])}\n\n{found[4]}",
        markdown,
        flags=re.DOTALL,
    )


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


if __name__ == "__main__":
    PAGE.write_text(with_settings(PAGE.read_text()))
