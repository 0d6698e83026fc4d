"""A whole training step as one CUDA graph: one launch by the host instead of hundreds (``training.cuda_graph``)."""

import logging
from collections.abc import Callable
from dataclasses import fields, replace
from typing import Protocol

import torch
from torch import Tensor

from gan.data.stream import BatchStream
from gan.training.context import GanContext, Metrics
from gan.training.gan_state import GanState, make_capturable, set_learning_rates
from gan.training.gan_step import StepInputs, draw_inputs, train_step, update_networks
from gan.utils.errors import first_line

log = logging.getLogger(__name__)
WARM_UP = 3  # steps before the capture, in which libraries choose algorithms and caches fill
Step = Callable[[], Metrics]


class Capture(Protocol):
    """How a device records what a function does on it."""

    def warm_up(self, function: Step) -> Metrics:
        """Return what ``function`` returns, called in the place where it will be captured."""

    def capture(self, function: Step) -> Step:
        """Record ``function``, which computes nothing meanwhile. Return a function that does what it would do."""


def step_function(state: GanState, stream: BatchStream, context: GanContext) -> Callable[[int], Metrics]:
    """Return the function that takes a step by its number: ``train_step``, or its graph where the settings ask for one.

    Without a GPU, and under several processes, whose collectives are not captured, it says so and is ``train_step``.
    """
    if context.config.training.cuda_graph:
        why = "on a GPU only" if context.device.type != "cuda" else ""
        if context.accelerator.num_processes > 1:
            why = "with a single process only"
        if not why:
            return GraphedStep(state, stream, context, CudaCapture(context.device))
        if context.accelerator.is_main_process:
            log.warning(f"training.cuda_graph=true: a step is a CUDA graph {why}, so its operations are launched one by one.")
    return lambda number: train_step(state, stream, number, context)


class GraphedStep:
    """Takes the first WARM_UP steps operation by operation, captures the next one, and replays it from then on.

    A graph repeats the same kernels on the same memory. What differs between two steps is therefore copied into tensors that
    stay: images and random numbers, learning rates and the weight of the average. A capture computes nothing, so no step is
    taken twice. A resumed run warms up again and captures anew; the kernels of both forms are the same.
    """

    def __init__(self, state: GanState, stream: BatchStream, context: GanContext, capture: Capture) -> None:
        self.state, self.stream, self.context = state, stream, context
        self._capture: Capture | None = capture  # None: it has failed
        self._inputs: StepInputs | None = None  # the tensors that the graph reads
        self._taken = 0
        self._replay: Step | None = None

    def __call__(self, number: int) -> Metrics:
        """Take step ``number`` (from 0). The metrics are overwritten by the next step."""
        inputs = draw_inputs(self.stream, number, self.context)
        if self._inputs is None:  # after a checkpoint was restored, which would replace the optimisers' tensors
            self._inputs = _persistent(inputs)
            for optimizer in (self.state.g_optimizer, self.state.d_optimizer):
                make_capturable(optimizer)
        set_learning_rates(self.state, self.context.config, number)
        _copy(inputs, self._inputs)
        if self._taken == WARM_UP:
            self._try_to_capture()
        self._taken += 1
        if self._replay is not None:
            return self._replay()
        return self._capture.warm_up(self._update) if self._capture is not None else self._update()

    @property
    def captured(self) -> bool:
        """Whether steps are replayed by now."""
        return self._replay is not None

    def _update(self) -> Metrics:
        assert self._inputs is not None
        return update_networks(self.state, self._inputs, self.context)

    def _try_to_capture(self) -> None:
        assert self._capture is not None
        try:
            self._replay = self._capture.capture(self._update)
        except RuntimeError as error:
            log.warning(f"the step cannot be captured ({first_line(error)}), so its operations are launched one by one")
            self._capture = None


class CudaCapture:
    """Captures on a CUDA device, in a stream of its own: autograd remembers the stream in which it first meets a weight."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.stream = device, torch.cuda.Stream(device)

    def warm_up(self, function: Step) -> Metrics:
        outer = torch.cuda.current_stream(self.device)
        self.stream.wait_stream(outer)
        with torch.cuda.stream(self.stream):
            metrics = function()
        outer.wait_stream(self.stream)
        return metrics

    def capture(self, function: Step) -> Step:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.device(self.device), torch.cuda.graph(graph, stream=self.stream):
            metrics = function()  # gradients come from the graph's own memory, since zero_grad leaves none

        def replay() -> Metrics:
            graph.replay()
            return metrics

        return replay


def _persistent(inputs: StepInputs) -> StepInputs:
    """Return tensors of the shapes of ``inputs``, which later steps are copied into."""
    weight = torch.zeros((), dtype=inputs.real.dtype, device=inputs.real.device)
    tensors = {name: torch.empty_like(value) for name, value in _tensors(inputs).items()}
    return replace(inputs, ema_weight=weight, **tensors)


def _copy(source: StepInputs, target: StepInputs) -> None:
    for name, value in _tensors(source).items():
        getattr(target, name).copy_(value)
    assert isinstance(target.ema_weight, Tensor)
    target.ema_weight.fill_(source.ema_weight)


def _tensors(inputs: StepInputs) -> dict[str, Tensor]:
    return {field.name: getattr(inputs, field.name) for field in fields(inputs) if field.name != "ema_weight"}
