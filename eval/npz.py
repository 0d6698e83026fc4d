"""Arrays of a .npz file that anyone may have made: no code, and no more memory than the arrays of its reader need."""

from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gan.utils.safe_reading import Archive

_TABLE_BYTES = 2**16  # some hundred arrays; ours hold four


def read_arrays(path: Path, names: tuple[str, ...], most: int) -> dict[str, NDArray[Any]]:
    """Those of the arrays ``names`` that the file holds, each of at most ``most`` bytes.

    Raises ValueError for anything but plain arrays, OSError for a file that cannot be read.
    """
    arrays = {}
    try:
        with Archive(path, table=_TABLE_BYTES) as archive:
            entries = {entry.filename: entry for entry in archive.infolist()}
            for name in names:
                if (entry := entries.get(f"{name}.npy")) is not None:
                    content = BytesIO(archive.content(entry, most))
                    arrays[name] = np.lib.format.read_array(content, allow_pickle=False)
    except OSError:
        raise
    except Exception as error:  # noqa: BLE001 (numpy reads a header as Python's own text, and trips over it in any way)
        raise ValueError(str(error)) from None
    return arrays
