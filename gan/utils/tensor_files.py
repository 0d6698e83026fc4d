"""Reading what torch.save wrote, though anyone may have written it: no code is run, and memory is bounded by the file's size."""

import pickletools
import zipfile
from collections.abc import Iterator, Mapping
from io import BytesIO
from typing import Any

import torch
from torch import Tensor

from gan.utils.errors import first_line

# What dense tensors in plain containers are made of. torch allows some more without running code; but bytearray makes room for
# any number, and with codecs a text can be doubled again and again.
_PARTS = {
    "collections OrderedDict",
    "torch Size",
    "torch device",
    "torch.nn.parameter Parameter",
    "torch._utils _rebuild_parameter",
    "torch._utils _rebuild_tensor_v2",
    "torch.serialization _get_layout",
    *(f"torch {name}Storage" for name in (
        "Double", "Float", "Half", "BFloat16", "Long", "Int", "Short", "Char", "Byte", "Bool",
    )),
}  # fmt: skip
_OLD_FORMAT = 5  # pickles at the start of a file from before torch 1.6, which is no zip


def load_tensors(content: bytes) -> Any:
    """Dense tensors and plain values in lists, tuples and dicts, on the CPU. Raises ValueError for anything else."""
    try:
        if foreign := sorted(set(_globals(content)) - _PARTS):
            raise ValueError(f"it asks for {foreign[0].replace(' ', '.')}, which is no part of a tensor")
        loaded = torch.load(BytesIO(content), map_location="cpu", weights_only=True)
        # A tensor can repeat one number without end, and many can share a storage: copied, each takes its own memory.
        if sum(tensor.nbytes for tensor in _tensors(loaded)) > 2 * len(content):
            raise ValueError("its tensors are larger than the file")
    except Exception as error:  # noqa: BLE001 (the unpickler meets any bytes, and trips over them in any way)
        raise ValueError(first_line(error)) from None
    return loaded


def _globals(content: bytes) -> Iterator[str]:
    """What the file's pickles look up by name, as "MODULE NAME"."""
    file, pickles = BytesIO(content), _OLD_FORMAT
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
                raise ValueError("compressed, which torch.save does not do")
            (pickled,) = (entry for entry in entries if entry.filename.endswith("/data.pkl"))
            file, pickles = BytesIO(archive.read(pickled)), 1
    else:
        file.seek(0)
    for _ in range(pickles):
        for code, argument, _place in pickletools.genops(file):
            if code.name in ("GLOBAL", "STACK_GLOBAL", "INST"):
                yield str(argument)


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from _tensors(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _tensors(inner)
