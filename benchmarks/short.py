"""The short table of the README, from the rows of one run of all benchmarks."""

import re
from collections.abc import Iterable, Mapping

from benchmarks.measurements import Row
from benchmarks.steps import PLAIN, VARIANTS, precisions
from gan.utils.tables import markdown_table

HEAD = ["work", "compared with", "speed-up"]
MISSING = "not measured"


def short_table(rows: Iterable[Row]) -> str:
    """Return the table. A cell whose measurement is not among ``rows`` says so."""
    rows = list(rows)
    # A quick run measures other batches, and says so in its own rows.
    ratios = {(re.sub(r", batch \d+", "", row.what), row.fast, row.slow): row.ratio for row in rows}
    auto = list(precisions())[-1]

    def values(found: Mapping[str, tuple[str, str, str]]) -> str:
        return ", ".join(f"{name} {ratios[key]:.2f}" for name, key in found.items() if key in ratios) or MISSING

    def steps(what: str, fast: str, slow: str) -> str:
        return values({name: (f"{what}, {name}", fast, slow) for name in VARIANTS})

    own = f"ours, {auto}"
    against = [f"in {shown}: {steps('training step, auto', own, PLAIN[shown])}" for shown in precisions()]
    distance = "Frechet distance, 10,000 images, 2048-d"
    peers = {"torch-fidelity": (distance, "ours", "torch-fidelity"), "pytorch-fid": (distance, "ours", "pytorch-fid")}
    scored = {}
    for row in rows:
        if row.what.startswith("scoring under"):
            peer, bf16 = row.slow.partition("'")[0], " (bf16)" if "-bf16" in row.fast else ""
            scored[peer + bf16] = (row.what, row.fast, row.slow)
    updates = []
    for shown in precisions():
        own_updates = {name: (f"D's training step, {shown}", name, "BN") for name in ("SN", "MSN")}
        updates.append(f"{shown}: {values(own_updates)}")
    grown = sorted(row.ratio for row in rows if row.what.endswith("speed for the work"))
    start = values({"again": ("start-up from an archive", "again", "the first time")}).removeprefix("again ")
    streamed = values({"streamed folder": ("20 batches of a streamed folder", "all files", "5,000 files")})
    growth = f"{grown[0]:.2f} to {grown[-1]:.2f}; {streamed}" if grown else MISSING
    return markdown_table(
        HEAD,
        [
            ["training step in float32", "plain loop in float32", steps("training step", "ours, float32", PLAIN["float32"])],
            [f"training step in auto, {auto}", "plain loop", "; ".join(against) if auto == "bf16" else "as in float32"],
            [
                "the same",
                "its convolutions and dense layers alone",
                steps(f"share of arithmetic, {auto}", own, f"arithmetic alone, {auto}"),
            ],
            ["update of D", "BatchNorm (the paper: SN 1.27, MSN 1.16)", "; ".join(updates)],
            ["scoring with Inception; the distance alone", "peers' programs", f"{values(scored)}; {values(peers)}"],
            ["second start from a zip, with cached pixels", "the first start", start],
            ["more images, larger images, wider networks", "time that grows as the work (above 1: less)", growth],
        ],
    )
