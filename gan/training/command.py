"""The shared part of the training commands: train.py and ``python -m study train``."""

from collections.abc import Callable

from accelerate import Accelerator

from gan.utils.distributed import connected
from gan.utils.settings import C


def run_command(
    config: C,
    describe: Callable[[C, Accelerator], str],
    train: Callable[[C, Accelerator], int],
    summarize: Callable[[C], str],
    *,
    dry_run: bool,
    device: str | None = None,
) -> int:
    """Train ``config`` and print its summary, or only print its description in a dry run. Return the exit code.

    ``train`` returns 0 or the number of the signal that stopped it, which gives exit code 128 + signal. ``device`` None is a GPU
    where there is one.
    """
    with connected(device) as accelerator:
        signal = 0 if dry_run else train(config, accelerator)
        if accelerator.is_main_process and not signal:
            print(describe(config, accelerator) if dry_run else summarize(config))
    return 128 + signal if signal else 0
