"""The shared part of the training commands: train.py and ``python -m study train``."""

from collections.abc import Callable

from accelerate import Accelerator

from gan.runs.folder import same_settings
from gan.training.loop import check_inputs
from gan.utils.distributed import connected, on_main
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
    where there is one. A dry run raises UserError where training would refuse the trackers, a run's folder as images, or
    the run in the folder for its settings.
    """

    def show() -> None:
        check_inputs(config)
        print(describe(config, accelerator))
        same_settings(config)

    with connected(device) as accelerator:
        if dry_run:
            on_main(accelerator, show)
            return 0
        signal = train(config, accelerator)
        if accelerator.is_main_process and not signal:
            print(summarize(config))
    return 128 + signal if signal else 0
