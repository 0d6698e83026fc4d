"""The processes that share one extraction: who does what, and how results and errors reach all of them."""

from collections.abc import Callable
from typing import TypeVar

import torch
from accelerate import Accelerator
from torch import Tensor

from eval.extractors import Floats
from gan.utils import distributed

T = TypeVar("T")


class Processes:
    """The processes of an ``Accelerator``, or this process alone. All of them call each method together."""

    def __init__(self, accelerator: Accelerator | None = None, check_stop: Callable[[], None] = lambda: None) -> None:
        """``check_stop`` is called before each round of batches; it raises an exception where the run has to stop."""
        self.accelerator, self.check_stop = accelerator, check_stop
        self.rank = 0 if accelerator is None else accelerator.process_index
        self.count = 1 if accelerator is None else accelerator.num_processes

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def on_main(self, function: Callable[[], T]) -> T:
        """Return the main process's ``function()`` to every process. A UserError ends all of them."""
        return function() if self.accelerator is None else distributed.on_main(self.accelerator, function)

    def on_all(self, function: Callable[[], T]) -> T:
        """Return this process's own ``function()``. A UserError on any process ends all of them."""
        return function() if self.accelerator is None else distributed.on_all(self.accelerator, function)

    def only_main(self, function: Callable[[], T]) -> T | None:
        """Return ``function()`` on the main process and None on the others. A UserError ends all of them."""
        return self.on_all(lambda: function() if self.is_main else None)

    def gather(self, values: Floats) -> Floats:
        """Return the arrays (n, ...) of all processes, of one shape each, joined in the order of their ranks."""
        if self.accelerator is None:
            return values
        joined: Tensor = self.accelerator.gather(torch.from_numpy(values).to(self.accelerator.device))
        gathered: Floats = joined.cpu().numpy()
        return gathered
