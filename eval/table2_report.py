"""Table II as Markdown, CSV and one HTML page that needs nothing beside it."""

import json
from pathlib import Path
from typing import Any

from eval import table2_cells
from eval.protocols import PROTOCOLS
from eval.table2_curves import draw_curves
from eval.table2_data import Table
from gan.page.rendering import render
from gan.utils.files import write_atomically
from gan.utils.tables import markdown_table


def write_report(table: Table, out: Path) -> str:
    """Write table2.md, table2_curves.png, table2.csv and table2.html into the folder ``out``. Return the first one's text."""
    out.mkdir(parents=True, exist_ok=True)
    curves = draw_curves(table)
    if curves is not None:
        write_atomically(out / "table2_curves.png", curves)
    text = markdown(table, curves is not None)
    contents = {"table2.md": text, "table2.csv": table2_cells.comma_separated(table), "table2.html": page(table, curves)}
    for name, content in contents.items():
        write_atomically(out / name, content.encode(errors="backslashreplace"))
    return text


def markdown(table: Table, curves: bool = False) -> str:
    """Return the table, then every score of each protocol and the provenance; with ``curves`` it shows their picture."""
    parts = ["# Table II", f"Extractor: {table.extractor['extractor']}.", markdown_table(*table2_cells.overview(table))]
    parts += table2_cells.remarks(table)
    if curves:
        parts.append("![Frechet distance along training](table2_curves.png)")
    protocols = _protocols(table)
    for protocol in protocols:
        parts += [f"## Protocol {protocol['name']}", f"{protocol['purpose']}.", markdown_table(*protocol["details"])]
    parts.append("## Provenance")
    parts += [f"```json\n{protocol['provenance']}\n```" for protocol in protocols]
    return "\n\n".join(parts) + "\n"


def page(table: Table, curves: bytes | None) -> str:
    """Return one HTML page with its pictures inside."""
    return render(
        "table2.html",
        Path(__file__).parent / "templates",
        table=table,
        extractor=table.extractor["extractor"],
        overview=table2_cells.overview(table),
        remarks=table2_cells.remarks(table),
        protocols=_protocols(table),
        curves=curves,
    )


def _protocols(table: Table) -> list[dict[str, Any]]:
    """Return each protocol's scores, and the provenance that all of them have in common."""
    found = []
    for name, record in table.records.items():
        common = {key: value for key, value in record["provenance"].items() if key not in ("generated", "step")}
        found.append({
            "name": name,
            "purpose": PROTOCOLS[name].purpose,
            "details": table2_cells.details(table, name),
            "provenance": json.dumps(common, indent=1, sort_keys=True),
        })  # fmt: skip
    return found
