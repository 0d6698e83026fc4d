"""One line where a program is started with a Python that cannot run it. Imports the standard library only."""

import sys
from importlib.util import find_spec
from pathlib import Path

_NEEDED = ("torch", "torchvision", "accelerate", "numpy", "omegaconf", "PIL", "safetensors", "tqdm", "yaml")
_PROGRAMS = ("-m", "train.py")  # the first word of the command line while ``python -m`` or train.py imports this package


def check_python() -> None:
    """Exit with code 2 and one line, if this process is a program and its Python is too old or lacks packages."""
    if Path(sys.argv[0] if sys.argv else "").name not in _PROGRAMS:
        return
    missing = [name for name in _NEEDED if find_spec(name) is None]
    if sys.version_info < (3, 11):  # noqa: UP036 (this line runs on older ones)
        lacks = "is older than 3.11"
    elif missing:
        lacks = "lacks the package" + ("s " if len(missing) > 1 else " ") + ", ".join(missing)
    else:
        return
    advice = "Run `make setup` in the checkout, then start the program with .venv/bin/python"
    print(f"error: {sys.executable or 'this Python'} {lacks}. {advice}.", file=sys.stderr)
    sys.exit(2)
