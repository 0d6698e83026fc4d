"""python -m benchmarks: speed-ups, each between two programs that are measured alternately in one run."""

import logging
import platform
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import torch

from benchmarks import gpu, growth, norms, profiles, scoring, steps
from benchmarks.alternating import ROOT
from benchmarks.measurements import HEAD, Row, Suite
from benchmarks.short import short_table
from gan.runs.folder import computes_in_bf16
from gan.utils import cli
from gan.utils.errors import UserError
from gan.utils.files import write_atomically
from gan.utils.tables import markdown_table

log = logging.getLogger(__name__)


PARTS: dict[str, Callable[[Suite], list[Row]]] = {
    "steps": steps.lines,
    "norms": norms.lines,
    "distance": scoring.distances,
    "scoring": scoring.lines,
    "growth": growth.lines,
}
MARKS = ("<!-- benchmarks -->", "<!-- /benchmarks -->")
README = """Ratios of medians, measured in turn ([method, profiles, missed goals](docs/speed.md)) on {machine}:

{table}
"""


def machine() -> str:
    """Return the processor, threads, capabilities and torch version of the measurements, and their date."""
    name = platform.processor() or platform.machine()
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), name)
    bf16 = "computes in bf16" if computes_in_bf16(torch.device("cpu")) else "does not compute in bf16: auto is float32"
    capabilities: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()
    amx = "with AMX" if capabilities.get("amx_bf16") else "without AMX"
    capability = torch.backends.cpu.get_cpu_capability()
    today = datetime.now(UTC).date()
    return f"{name}, {torch.get_num_threads()} threads, {capability}, {bf16}, {amx}; torch {torch.__version__}; {today}"


def main(arguments: Sequence[str]) -> int:
    parser = cli.Parser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "parts", nargs="*", metavar="PART", help=f"parts to run: {', '.join(PARTS)} (default: all of these); or gpu, alone"
    )
    parser.add_argument("--quick", action="store_true", help="fewer rounds and images: at most 5 minutes on two cores")
    parser.add_argument("--data", type=cli.path, metavar="ZIP", help="images in class folders (default: random images)")
    parser.add_argument("--scored", type=cli.whole_number(50), metavar="N", help="images for the part scoring (default: 500)")
    parser.add_argument(
        "--write", action="store_true", help="write the table into docs/speed.md, and after a whole run that of the README"
    )
    parser.add_argument("--profile", action="store_true", help="only show where the time of D's update and of a step goes")
    options = parser.parse_args(arguments)
    on_gpu = options.parts == ["gpu"]
    if unknown := set(options.parts) - ({"gpu"} if on_gpu else set(PARTS)):
        raise UserError(f"{', '.join(sorted(unknown))}: no such part. Choose from {', '.join(PARTS)}, or gpu alone.")
    if on_gpu and not torch.cuda.is_available():
        raise UserError("gpu: no CUDA device is available here. The other parts measure the CPU.")
    if options.data is not None and not (options.data.is_file() and options.data.suffix == ".zip"):
        raise UserError(f"--data {options.data}: expected an existing .zip of images.")
    print(machine(), flush=True)
    suite = Suite(options.quick, options.data and options.data.resolve(), options.scored)
    with suite.temporary:
        if options.profile:
            print(profiles.tables(str(suite.archive())))
            return 0
        if on_gpu:
            return _measure_gpu(suite, write=options.write)
        return _measure(suite, options.parts or PARTS, write=options.write)


def _measure_gpu(suite: Suite, *, write: bool) -> int:
    """Measure the GPU, and ``write`` the tables into its page. Return the exit code."""
    name = f"{torch.cuda.get_device_name()}; torch {torch.__version__}; {datetime.now(UTC).date()}"
    tables = gpu.report(suite)
    print(f"{name}\n\n{tables}")
    if write:
        _write("docs/gpu.md", f"\n{name}.\n\n{tables}\n")
    return _report_failures(suite)


def _measure(suite: Suite, parts: Iterable[str], *, write: bool) -> int:
    """Measure ``parts`` on the CPU, and ``write`` their table into docs/speed.md, that of all parts into the README too."""
    found: list[Row] = []
    for part in parts:
        began = time.monotonic()
        lines = PARTS[part](suite)
        found += lines
        print(_table(lines), flush=True)
        log.info(f"{part}: {time.monotonic() - began:.0f} s")
    print(short_table(found))
    if write:
        _write("docs/speed.md", f"\n{machine()}.\n\n{_table(found)}\n")
        if not suite.quick and parts is PARTS:
            _write("README.md", README.format(machine=machine(), table=short_table(found)))
    return _report_failures(suite)


def _report_failures(suite: Suite) -> int:
    for failure in suite.failed:
        print(f"check failed: {failure}")
    return 1 if suite.failed else 0


def _table(rows: Sequence[Row]) -> str:
    return markdown_table(HEAD, [row.cells() for row in rows])


def _write(page: str, text: str) -> None:
    """Replace what is between the marks of ``page``."""
    path = ROOT / page
    before, _, rest = path.read_text().partition(MARKS[0])
    after = rest.partition(MARKS[1])[2]
    if not after:
        raise UserError(f"{path}: no place for the table. Add the lines {MARKS[0]} and {MARKS[1]}.")
    write_atomically(path, f"{before}{MARKS[0]}{text}{MARKS[1]}{after}".encode())


if __name__ == "__main__":
    sys.exit(cli.run(lambda: main(sys.argv[1:])))
