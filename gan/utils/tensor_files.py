"""Read what torch.save wrote without running code, even if the file comes from a stranger."""

import zipfile
from io import BytesIO
from typing import Any

import torch

from gan.utils.errors import first_line


def load_tensors(content: bytes) -> Any:
    """Return the tensors and plain values that torch.save wrote, on the CPU. Raises ValueError for anything else.

    The caller limits the size of the file.
    """
    file = BytesIO(content)
    try:
        if zipfile.is_zipfile(file):
            with zipfile.ZipFile(file) as archive:
                # A few kilobytes can unpack to gigabytes; torch.save never compresses.
                if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
                    raise ValueError("compressed, which torch.save does not do")
        file.seek(0)
        return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # noqa: BLE001 (the unpickler raises errors of many kinds on damaged bytes)
        raise ValueError(first_line(error)) from None
