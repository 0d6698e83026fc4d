"""Read arrays from an untrusted .npz file without running code and within one limit of size."""

from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gan.utils.safe_reading import Archive

MAX_BYTES = 2**29  # of one array: a covariance of 8,192 features
_TABLE_BYTES = 2**16  # of the zip's table of contents: some hundred arrays


def read_arrays(path: Path, names: tuple[str, ...]) -> dict[str, NDArray[Any]]:
    """Return those of the arrays ``names`` that the file contains.

    Raises ValueError for a damaged file, an array of objects or one of more than 512 MB; OSError for an unreadable file.
    """
    arrays = {}
    try:
        with Archive(path, table=_TABLE_BYTES) as archive:
            for name in names:
                if f"{name}.npy" in archive.NameToInfo:
                    # Not numpy.load: it unpacks an entry that is no array, whatever its size.
                    content = BytesIO(archive.content(archive.getinfo(f"{name}.npy"), MAX_BYTES))
                    arrays[name] = np.lib.format.read_array(content, allow_pickle=False)
    except OSError:
        raise
    except Exception as error:  # noqa: BLE001 (numpy evaluates a header as a Python literal, which fails in many ways)
        raise ValueError(str(error)) from None
    return arrays
