"""The walls of the house: imports go one way, as DESIGN.md draws them."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# Import nothing of the project; all may use them.
LEAVES = {
    "gan.allocator", "gan.downloads", "gan.errors", "gan.files", "gan.interrupts", "gan.keyed", "gan.pickles", "gan.progress",
    "gan.untrusted",
}  # fmt: skip
ALLOWED = {
    "gan.allocator": set(),
    "gan.downloads": set(),
    "gan.errors": set(),
    "gan.files": set(),
    "gan.interrupts": set(),
    "gan.keyed": set(),
    "gan.pickles": set(),
    "gan.progress": set(),
    "gan.untrusted": set(),
    "gan.centred": set(),
    "gan.norms": {"gan.centred"},
    "gan.losses": set(),
    "gan.settings": set(),
    "gan.config": {"gan.settings"},
    "gan.health": set(),
    "gan.wandb_run": set(),
    "gan.tracking": {"gan.wandb_run"},
    "gan.checkpoints": set(),
    "gan.sampling": set(),
    "gan.cli": set(),
    "gan.networks": {"gan.norms", "gan.config"},
    "gan.published": {"gan.settings"},
    "gan.decoding": set(),
    "gan.sources": {"gan.decoding", "gan.published", "gan.settings"},
    "gan.pixels": set(),
    "gan.data": {"gan.pixels", "gan.settings", "gan.sources"},
    "gan.scores": set(),
    "study": set(),
    "study.networks": {"gan.norms"},
    "study.config": {"gan.settings", "study.networks"},
    "study.data": {"gan.data", "gan.settings", "gan.sources", "study.config"},
    "study.probes": {"gan.loop", "gan.norms", "study.config", "study.networks"},
    "study.results": {"gan.checkpoints", "gan.runs", "gan.settings", "gan.tracking", "study.config"},
    "study.tables": {"gan.networks", "study.networks", "study.results"},
    "study.speed": {"study.networks", "study.tables"},
    "study.figures": {"study.probes", "study.results", "study.tables"},
    "eval": set(),
    "eval.arrays": set(),
    "eval.extractors": set(),
    "eval.statistics": {"eval.arrays"},
    "eval.metrics": {"eval.statistics"},
    "eval.features": {"eval.arrays", "eval.extractors"},
    "eval.protocols": {"eval.features", "eval.metrics", "eval.statistics"},
    "eval.comparability": {"eval.extractors", "eval.features"},
    "eval.words": {"eval.comparability", "eval.protocols"},
    "eval.curves": {"eval.comparability", "eval.results"},
    "eval.report": {"eval.comparability", "eval.curves", "eval.protocols", "eval.results", "eval.words"},
}
ANY_OF_BOTH = {"eval.images", "eval.scoring", "eval.results", "eval.__main__"}
ANY_OF_GAN = {
    "gan",
    "gan.__main__",
    "gan.generators",
    "gan.job",
    "gan.loop",
    "gan.overview",
    "gan.processes",
    "gan.runs",
    "gan.training",
    "gan.updates",
}


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def project_imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert node.module
            inside = {f"{node.module}.{alias.name}" for alias in node.names}
            modules = {name for name in inside if (ROOT / (name.replace(".", "/") + ".py")).exists()}
            found |= modules or {node.module}
    return {name for name in found if name.split(".")[0] in ("gan", "eval", "study", "benchmarks", "train", "tests")}


ANY_OF_STUDY = {"study.classifier", "study.sweep", "study.__main__"}
MODULES = sorted(path for folder in ("gan", "eval", "study") for path in (ROOT / folder).glob("*.py"))


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_imports_go_one_way(path: Path) -> None:
    name, imports = module_name(path), project_imports(path)
    if name in ANY_OF_GAN:
        assert all(module.split(".")[0] == "gan" for module in imports)
    elif name in ANY_OF_BOTH:
        assert all(module.split(".")[0] in ("gan", "eval") for module in imports)
    elif name in ANY_OF_STUDY:
        assert all(module.split(".")[0] in ("gan", "study") for module in imports)
    else:
        assert imports <= ALLOWED[name] | LEAVES, f"{name} may not import {imports - ALLOWED[name] - LEAVES}"


def test_eval_is_never_imported_by_its_bare_name() -> None:
    for path in [*ROOT.glob("*.py"), *MODULES, *(ROOT / "tests").glob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                assert all(alias.name != "eval" for alias in node.names), f"{path}: hides the builtin"


def test_a_forbidden_import_would_be_noticed(tmp_path: Path) -> None:
    file = tmp_path / "norms.py"
    file.write_text("from gan import training\nfrom gan.config import Config\nimport torch\n")
    assert project_imports(file) == {"gan.training", "gan.config"}
