"""No call in the product may run code out of a file, start a shell or unpack to where a file's names point."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

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


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_unsafe_call(path: Path) -> None:
    own = path.relative_to(ROOT).as_posix()
    found = [(line, name) for line, name in offences(path.read_text()) if (own, name) not in ALLOWED]
    assert not found, f"{own}: {found}"


def test_all_code_is_looked_at() -> None:
    assert {path.relative_to(ROOT).parts[0] for path in FILES} == {"gan", "eval", "study", "benchmarks", "train.py"}
    assert len(FILES) > 60


UNSAFE = [
    "import torch\ntorch.load(f)",
    "import torch\ntorch.load(f, weights_only=False)",
    "import torch\ntorch.load(f, weights_only=flag)",
    "import torch as t\nt.load(f)",
    "from torch import load\nload(f)",
    "from torch import load as get\nget(f)",
    "import torch\nread = torch.load",
    "import torch\nmap(torch.load, files)",
    "import torch\ntorch.load(f, **options)",
    "import pickle\npickle.load(f)",
    "import pickle\npickle.loads(b)",
    "import pickle as p\np.Unpickler(f).load()",
    "from pickle import loads",
    "from pickle import Unpickler as U\nU(f)",
    "import cloudpickle\ncloudpickle.loads(b)",
    "import dill\ndill.load(f)",
    "import shelve\nshelve.open(f)",
    "import marshal\nmarshal.loads(b)",
    "import joblib\njoblib.load(f)",
    "import yaml\nyaml.load(f)",
    "import yaml\nyaml.load(f, Loader=yaml.SafeLoader)",
    "import yaml\nyaml.unsafe_load(f)",
    "import yaml\nyaml.full_load(f)",
    "import yaml\nyaml.load_all(f)",
    "import yaml\nyaml.parse(f, Loader=yaml.UnsafeLoader)",
    "from yaml import load\nload(f)",
    "import numpy as np\nnp.load(f)",
    "import numpy as np\nnp.load(f, allow_pickle=True)",
    "import numpy as np\nnp.lib.format.read_array(f)",
    "from numpy import load\nload(f)",
    "eval(text)",
    "exec(text)",
    "compile(text, 'a', 'exec')",
    "__import__(name)",
    "map(eval, lines)",
    "import os\nos.system(text)",
    "from os import system\nsystem(text)",
    "import os\nos.popen(text)",
    "import subprocess\nsubprocess.run(text, shell=True)",
    "import subprocess\nsubprocess.run(text, shell=flag)",
    "from subprocess import Popen\nPopen(text, shell=True)",
    "import subprocess\nsubprocess.getoutput(text)",
    "import zipfile\nzipfile.ZipFile(f).extractall(folder)",
    "archive.extract(name)",
    "import tarfile\nwith tarfile.open(f) as t:\n    t.extractall()",
    "import shutil\nshutil.unpack_archive(f)",
    "from shutil import unpack_archive\nunpack_archive(f)",
    "import torch\ntorch.hub.load('a/b', 'c')",
    "from torch.hub import load_state_dict_from_url\nload_state_dict_from_url(url)",
    "import torch\ntorch.hub.load_state_dict_from_url(url)",
]


@pytest.mark.parametrize("source", UNSAFE)
def test_an_unsafe_call_would_be_noticed(source: str) -> None:
    assert list(offences(source))


SAFE = [
    "import torch\ntorch.load(f, weights_only=True)",
    "import pickle\ntry:\n    pass\nexcept pickle.UnpicklingError:\n    pass",
    "import pickle\npickle.dumps(x)",
    "import yaml\nyaml.safe_load(f)",
    "import yaml\nyaml.parse(f, Loader=yaml.SafeLoader)",
    "import numpy as np\nnp.load(f, allow_pickle=False)",
    "import subprocess\nsubprocess.run(['ls'], check=False)",
    "import subprocess\nsubprocess.run(['ls'], shell=False)",
    "from eval.features import extract\nextract(images)",
    "import re\nre.compile(text)",
    "import torch\ntorch.compile(network)",
    "network.eval()",
    "import json\njson.load(f)",
]


@pytest.mark.parametrize("source", SAFE)
def test_a_safe_call_is_left_alone(source: str) -> None:
    assert not list(offences(source))
