"""No call in the product may run code out of a file, start a shell or unpack to where a file's names point."""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
UNPICKLERS = ("pickle", "_pickle", "cloudpickle", "dill", "shelve", "marshal", "joblib", "jsonpickle")
# Of a module, what may be named all the same: it reads nothing.
HARMLESS = ("PickleError", "PicklingError", "UnpicklingError", "dump", "dumps")
NEVER = {
    "eval", "exec", "compile", "__import__",
    "os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput",
    "torch.hub.load", "torch.hub.load_state_dict_from_url", "torch.utils.model_zoo.load_url",
    *(f"yaml.{name}" for name in (
        "load", "load_all", "unsafe_load", "unsafe_load_all", "full_load", "full_load_all",
        "Loader", "UnsafeLoader", "FullLoader",
    )),
}  # fmt: skip
EXTRACTORS = ("extract", "extractall", "unpack_archive")  # of zipfile, tarfile and shutil, whatever object they are called on
ALLOWED = {("benchmarks/measurements.py", "archive.extractall")}  # the benchmarks' own zip, which they have made
OURS = ("gan", "eval", "study", "benchmarks")
FILES = sorted([ROOT / "train.py", *(path for folder in OURS for path in (ROOT / folder).rglob("*.py"))])


def dotted(node: ast.AST) -> str:
    """``a.b.c`` of an expression; what is not a name in it is a star: ``f().load`` is ``*.load``."""
    if isinstance(node, ast.Name):
        return node.id
    return f"{dotted(node.value)}.{node.attr}" if isinstance(node, ast.Attribute) else "*"


def names_of(tree: ast.AST) -> dict[str, str]:
    """What each imported name stands for: ``np`` for ``numpy``, ``load`` for ``pickle.load``."""
    found: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.asname: alias.name for alias in node.names if alias.asname}
        elif isinstance(node, ast.ImportFrom):
            found |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    return found


def offences(source: str) -> Iterator[tuple[int, str]]:
    """Line and name of each unsafe call, or unsafe function that is handed on, in ``source``."""
    tree = ast.parse(source)
    names = names_of(tree)
    called = {id(node.func): node for node in ast.walk(tree) if isinstance(node, ast.Call)}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                if _is_unpickler(f"{node.module}.{alias.name}"):
                    yield node.lineno, f"{node.module}.{alias.name}"
        if not isinstance(node, ast.Name | ast.Attribute) or not isinstance(node.ctx, ast.Load):
            continue
        first, _, rest = dotted(node).partition(".")
        name = ".".join(filter(None, (names.get(first, first), rest)))
        if _is_unsafe(name, called.get(id(node))):
            yield node.lineno, name


def _is_unpickler(name: str) -> bool:
    module, _, function = name.partition(".")
    return module in UNPICKLERS and function != "" and function not in HARMLESS


def _is_unsafe(name: str, call: ast.Call | None) -> bool:
    """Whether ``name`` may not be used as it is: in ``call``, or without one, as a value that is called elsewhere."""
    module, _, last = name.rpartition(".")
    if module.partition(".")[0] in OURS:
        return False
    if _is_unpickler(name) or name in NEVER:
        return True
    if name == "torch.load":
        return not _has(call, "weights_only", True)
    if name in ("numpy.load", "numpy.lib.format.read_array"):
        return not _has(call, "allow_pickle", False)
    if module == "subprocess":
        return _gives(call, "shell")
    return module != "" and last in EXTRACTORS


def _gives(call: ast.Call | None, argument: str) -> bool:
    """Whether ``argument`` is given and is not plainly False; also where ``**options`` might hold it."""
    return call is not None and any(
        k.arg == argument and not (isinstance(k.value, ast.Constant) and k.value.value is False) for k in call.keywords
    )


def _has(call: ast.Call | None, argument: str, value: bool) -> bool:
    return call is not None and any(
        k.arg == argument and isinstance(k.value, ast.Constant) and k.value.value is value for k in call.keywords
    )


def test_no_unsafe_call_in_any_file() -> None:
    assert {path.relative_to(ROOT).parts[0] for path in FILES} == {"gan", "eval", "study", "benchmarks", "train.py"}
    assert len(FILES) > 60
    names = {path: path.relative_to(ROOT).as_posix() for path in FILES}
    found = [(own, line, name) for path, own in names.items() for line, name in offences(path.read_text())]
    assert [offence for offence in found if (offence[0], offence[2]) not in ALLOWED] == []


UNSAFE = [
    "import torch\ntorch.load(f)",
    "import torch\ntorch.load(f, weights_only=False)",
    "import torch\ntorch.load(f, weights_only=flag)",
    "import torch\ntorch.load(f, **options)",
    "import torch as t\nt.load(f)",
    "from torch import load as get\nget(f)",
    "import torch\nmap(torch.load, files)",
    "import pickle as p\np.Unpickler(f).load()",
    "from pickle import loads",
    *(f"import {module}\n{module}.loads(b)" for module in UNPICKLERS),
    *(f"import yaml\nyaml.{name}(f)" for name in ("load", "unsafe_load", "full_load", "load_all")),
    "import yaml\nyaml.load(f, Loader=yaml.SafeLoader)",
    "import yaml\nyaml.parse(f, Loader=yaml.UnsafeLoader)",
    "import numpy as np\nnp.load(f)",
    "from numpy import load\nload(f, allow_pickle=True)",
    "import numpy as np\nnp.lib.format.read_array(f)",
    *(f"{name}(text)" for name in ("eval", "exec", "compile", "__import__")),
    "map(eval, lines)",
    "from os import system\nsystem(text)",
    "import subprocess\nsubprocess.run(text, shell=flag)",
    "import subprocess\nsubprocess.getoutput(text)",
    "archive.extract(name)",
    "import zipfile\nzipfile.ZipFile(f).extractall(folder)",
    "from shutil import unpack_archive\nunpack_archive(f)",
    "import torch\ntorch.hub.load('a/b', 'c')",
]
SAFE = [
    "import torch\ntorch.load(f, weights_only=True)",
    "import pickle\ntry:\n    pass\nexcept pickle.UnpicklingError:\n    pass",
    "import pickle\npickle.dumps(x)",
    "import yaml\nyaml.parse(f, Loader=yaml.SafeLoader)",
    "import numpy as np\nnp.load(f, allow_pickle=False)",
    "import subprocess\nsubprocess.run(['ls'], shell=False)",
    "from eval.features import extract\nextract(images)",
    "import re\nre.compile(text)",
    "network.eval()",
]


def test_an_unsafe_call_would_be_noticed_and_a_safe_one_is_left_alone() -> None:
    assert [source for source in UNSAFE if not list(offences(source))] == []
    assert [source for source in SAFE if list(offences(source))] == []
