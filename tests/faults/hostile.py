"""Files that a stranger might hand over, and commands that are measured while they meet them."""

import hashlib
import io
import json
import os
import pickle
import re
import struct
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image

ROOT = Path(__file__).parent.parent.parent
MIB = 2**20
CANARY = "canary"

# Runs a program as `python -m` would, tells its largest memory, and stops it before it takes the machine's.
_MEASURED = """
import re, resource, runpy, sys
from pathlib import Path
resource.setrlimit(resource.RLIMIT_AS, (12 << 30, 12 << 30))
report, program = sys.argv[1:3]
sys.argv[:] = sys.argv[2:]
sys.path.insert(0, "ROOT")
try:
    run = runpy.run_path if program.endswith(".py") else runpy.run_module
    run(program, run_name="__main__", **({} if program.endswith(".py") else {"alter_sys": True}))
finally:
    Path(report).write_text(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
""".replace("ROOT", str(ROOT))


@dataclass(frozen=True)
class Outcome:
    """How a command ended."""

    code: int
    out: str
    lines: list[str]  # on stderr
    peak: int  # MiB of memory

    @property
    def errors(self) -> list[str]:
        return [line for line in self.lines if line.startswith("error: ")]


def command(world: Path, *words: str, seconds: float = 120.0) -> Outcome:
    """Runs ``python -m WORDS`` (or a .py of the project) with an empty home and working folder beside ``world``."""
    home, report = world.parent / "home", world.parent / "peak"
    home.mkdir(exist_ok=True)
    program = str(ROOT / words[0]) if words[0].endswith(".py") else words[0]
    environment = {
        **os.environ,
        "HOME": str(home),
        "XDG_CACHE_HOME": str(home),
        "MSNGAN_CACHE": str(world / "cache"),
        "OMP_NUM_THREADS": "1",
        "MPLCONFIGDIR": str(world.parent),
    }
    done = subprocess.run(
        [sys.executable, "-c", _MEASURED, str(report), program, *words[1:]],
        cwd=home, env=environment, capture_output=True, text=True, errors="surrogateescape", check=False, timeout=seconds,
    )  # fmt: skip
    assert not list(home.rglob("*")), "written into the home or working folder"
    return Outcome(done.returncode, done.stdout, done.stderr.splitlines(), int(report.read_text()) // 1024)


def listing(folder: Path) -> dict[str, tuple[int, int]]:
    """Size and time of change of all that ``folder`` holds."""
    found = {}
    for path in folder.rglob("*"):
        status = path.lstat()
        found[str(path)] = (status.st_size, status.st_mtime_ns) if not path.is_dir() else (0, 0)
    return found


class Code:
    """What runs when it is unpickled: it makes the file CANARY."""

    def __init__(self, folder: Path) -> None:
        self.text = f"touch '{folder / CANARY}'"

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (os.system, (self.text,))


def saved(value: object, **options: object) -> bytes:
    """As torch.save writes it."""
    buffer = io.BytesIO()
    torch.save(value, buffer, **options)
    return buffer.getvalue()


def seal(checkpoint: Path, **changes: object) -> None:
    """Makes a checkpoint's checksums those of its files, as an attacker would; ``changes`` are to its manifest."""
    manifest = json.loads((checkpoint / "checkpoint.json").read_text())
    for name in manifest["files"]:
        content = (checkpoint / name).read_bytes()
        manifest["files"][name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    seal_text(checkpoint, json.dumps(manifest | changes))


def seal_text(checkpoint: Path, text: str) -> None:
    """Makes ``text`` a checkpoint's manifest."""
    (checkpoint / "checkpoint.json").write_text(text)
    if (checkpoint / "checkpoint.sha256").exists():
        checksum = hashlib.sha256(text.encode()).hexdigest()
        (checkpoint / "checkpoint.sha256").write_text(f"{checksum}  checkpoint.json\n")


def safetensors_file(header: bytes, data: bytes = b"", length: int | None = None) -> bytes:
    return struct.pack("<Q", len(header) if length is None else length) + header + data


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, *chunks: bytes, mode: int = 2) -> bytes:
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, mode, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + png_chunk(b"IEND", b"")


def _bmp(w: int, h: int) -> bytes:
    return b"BM" + struct.pack("<IHHI", 54, 0, 0, 54) + struct.pack("<IiiHHIIiiII", 40, w, h, 1, 24, 0, 0, 0, 0, 0, 0)


def _gif(w: int, h: int) -> bytes:
    frame = b"\x2c" + struct.pack("<HHHHB", 0, 0, w, h, 0) + b"\x08\x01\x00\x00"
    return b"GIF89a" + struct.pack("<HHBBB", w, h, 0xF7, 0, 0) + bytes(768) + frame + b";"


def _tiff(w: int, h: int) -> bytes:
    tags = [(256, 4, w), (257, 4, h), (258, 3, 8), (259, 3, 1), (262, 3, 1), (273, 4, 8), (277, 3, 1), (278, 4, h), (279, 4, 1)]
    entries = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in tags)
    return b"II*\0" + struct.pack("<I", 8) + struct.pack("<H", len(tags)) + entries + bytes(4)


def _jpeg(w: int, h: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (8, 8)).save(buffer, "JPEG")
    content = buffer.getvalue()
    place = content.index(b"\xff\xc0") + 5
    return content[:place] + struct.pack(">HH", h, w) + content[place + 4 :]


def _jpeg2000(w: int, h: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (8, 8)).save(buffer, "JPEG2000")
    content = bytearray(buffer.getvalue())
    place = content.index(b"ihdr") + 4
    content[place : place + 8] = struct.pack(">II", h, w)
    place = content.index(b"\xff\x51") + 6
    content[place : place + 8] = struct.pack(">II", w, h)
    content[place + 16 : place + 24] = struct.pack(">II", w, h)
    return bytes(content)


def _webp(w: int, h: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGBA", (8, 8)).save(buffer, "WEBP", save_all=True, append_images=[Image.new("RGBA", (8, 8), (9, 9, 9, 9))])
    content = bytearray(buffer.getvalue())
    place = content.index(b"VP8X") + 12
    content[place : place + 6] = struct.pack("<I", w - 1)[:3] + struct.pack("<I", h - 1)[:3]
    return bytes(content)


# A file of a few bytes whose header claims so many pixels, by the ending of its name.
HEADERS: dict[str, Callable[[int, int], bytes]] = {
    "png": lambda w, h: png(w, h, png_chunk(b"IDAT", b"")),
    "bmp": _bmp,
    "dib": lambda w, h: _bmp(w, h)[14:],
    "gif": _gif,
    "tif": _tiff,
    "jpg": _jpeg,
    "jp2": _jpeg2000,
    "webp": _webp,
    "ppm": lambda w, h: f"P6 {w} {h} 255\n".encode(),
    "tga": lambda w, h: struct.pack("<BBBHHBHHHHBB", 0, 0, 2, 0, 0, 0, 0, 0, w, h, 24, 0),
    "psd": lambda w, h: b"8BPS" + struct.pack(">H6xHIIHH", 1, 3, h, w, 8, 3) + bytes(14),
    "sgi": lambda w, h: struct.pack(">hBBHHHH", 474, 0, 1, 3, w, h, 3) + bytes(500),
    "pcx": lambda w, h: struct.pack("<BBBBHHHH53xBH60x", 10, 5, 1, 8, 0, 0, w - 1, h - 1, 3, w),
    "qoi": lambda w, h: b"qoif" + struct.pack(">IIBB", w, h, 3, 0),
    "dds": lambda w, h: b"DDS " + struct.pack("<IIII", 124, 0x1007, h, w) + bytes(56) + struct.pack(
        "<IIIIIIII", 32, 0x40, 0, 24, 0xFF0000, 0xFF00, 0xFF, 0) + bytes(20),
}  # fmt: skip


def deflated_zeros(size: int) -> tuple[bytes, int]:
    """A deflate stream that unpacks to ``size`` zeros (a multiple of 2^24), at once, and the zeros' CRC-32 of the first part.

    One part is compressed and repeated: each ends in a full flush, so that the parts stand alone.
    """
    part = 2**24
    squeezer = zlib.compressobj(9, zlib.DEFLATED, -15)
    block = squeezer.compress(bytes(part)) + squeezer.flush(zlib.Z_FULL_FLUSH)
    return block * (size // part) + zlib.compressobj(9, zlib.DEFLATED, -15).flush(), zlib.crc32(bytes(part))


def raw_zip(path: Path, entries: Sequence[tuple[bytes, bytes, int, int, int]]) -> Path:
    """A zip written by hand: name, packed content, method, claimed size and flags of each entry."""
    with path.open("wb") as file:
        table = b""
        for name, packed, method, size, flags in entries:
            checksum = zlib.crc32(packed) if method == zipfile.ZIP_STORED else 0
            sizes = struct.pack("<III", checksum, min(len(packed), 2**32 - 1), min(size, 2**32 - 1))
            extra = struct.pack("<HHQ", 1, 8, size) if size >= 2**32 - 1 else b""
            common = struct.pack("<HHHHH", 45, flags, method, 0, 33) + sizes + struct.pack("<HH", len(name), len(extra))
            table += b"PK\1\2" + struct.pack("<H", 45) + common + struct.pack("<HHHII", 0, 0, 0, 0, file.tell()) + name + extra
            file.write(b"PK\3\4" + common + name + extra + packed)
        start = file.tell()
        file.write(table + b"PK\5\6" + struct.pack("<HHHHIIH", 0, 0, len(entries), len(entries), len(table), start, 0))
    return path


def many_entries(path: Path, count: int) -> Path:
    """A zip of ``count`` empty images without any content: a table of contents of 51 bytes each, and nothing else."""
    name = b"a.png"
    record = b"PK\1\2" + struct.pack("<HHHHHHIIIHHHHHII", 45, 45, 0, 0, 0, 33, 0, 0, 0, len(name), 0, 0, 0, 0, 0, 0) + name
    with path.open("wb") as file:
        for start in range(0, count, 10**5):
            file.write(record * min(10**5, count - start))
        size = file.tell()
        end = struct.pack("<QHHIIQQQQ", 44, 45, 45, 0, 0, count, count, size, 0)
        file.write(b"PK\6\6" + end + b"PK\6\7" + struct.pack("<IQI", 0, size, 1))
        file.write(b"PK\5\6" + struct.pack("<HHHHIIH", 0, 0, 0xFFFF, 0xFFFF, min(size, 2**32 - 1), 0xFFFFFFFF, 0))
    return path


def npy(shape: str, dtype: str = "<f8", data: bytes = b"", fortran: str = "False") -> bytes:
    """An array's file whose header claims what it likes."""
    header = f"{{'descr': {dtype!r}, 'fortran_order': {fortran}, 'shape': {shape}, }}".encode()
    header += b" " * (63 - (len(header) + 10) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + data


def npz(path: Path, **members: bytes) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)
    return path


def pickled_npy(folder: Path) -> bytes:
    """An array of objects whose pickle runs code."""
    return npy("(1,)", "|O", pickle.dumps([Code(folder)]))


def terminal_codes(text: str) -> list[str]:
    """What in ``text`` would do more to a terminal than to write letters."""
    return re.findall(r"[^\x20-\x7e\u00a0-\u200a\u2010-\u2027\u2030-\uffff]", text)
