"""Measure weights, gradients and pre-activations of layers during training, for the paper's figures. Changes no weight."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from gan.training.loop import due
from gan.utils.errors import TrainingDivergedError
from study.config import ProbesConfig
from study.models import WeightedLayer, weighted_layers

# The layers of DenseNet-BC that the paper shows as 6, 13, 44, 56, 67, 75, 84 and 93. Its authors' code counts the weights from
# 0, with the stem as 0; layers are numbered from 1 here.
PAPERS_LAYERS = (7, 14, 45, 57, 68, 76, 85, 94)
THRESHOLDS = (1e-8, 1e-7, 1e-6, 1e-5, 1e-4)


def chosen_layers(network: nn.Module, numbers: list[int] | None) -> list[WeightedLayer]:
    """Return the layers with these ``numbers``; None: the paper's eight of a network with 100 layers, else all.

    Raises ValueError for a number that no layer has.
    """
    layers = weighted_layers(network)
    if numbers is None:
        numbers = list(PAPERS_LAYERS) if len(layers) == 100 else [layer.number for layer in layers]
    if wrong := [number for number in numbers if not 1 <= number <= len(layers)]:
        raise ValueError(f"no layer {', '.join(map(str, wrong))}; there are {len(layers)}, numbered from 1")
    return [layers[number - 1] for number in numbers]


class Prober:
    """Measures some layers of a network in training."""

    def __init__(self, network: nn.Module, settings: ProbesConfig, total: int) -> None:
        self.settings, self.total = settings, total
        self.layers = chosen_layers(network, settings.layers) if settings.every else []
        self._next = _activations_after(network)
        self._means: dict[int, Tensor] = {}

    def due(self, step: int) -> bool:
        """Return whether step number ``step`` (from 1) is recorded: the first, the last and each multiple of probes.every."""
        return bool(self.settings.every) and step >= 1 and (step == 1 or due(step, self.settings.every, self.total))

    @property
    def has_watched(self) -> bool:
        """Whether a forward pass has been watched, so that ``records`` can be called."""
        return bool(self._means)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Keep, during a forward pass, each layer's mean pre-activation: the input of its activation, after all norms."""

        def keep(layer: WeightedLayer, values: Tensor) -> None:
            own = values[:, -len(layer.parameter) :]  # DenseNet appends a layer's maps to those of the layers before
            self._means[layer.number] = own.detach().mean(dtype=torch.float32)

        hooks = []
        for layer in self.layers:
            activation = self._next.get(layer.number)
            if activation is not None:
                hooks.append(activation.register_forward_pre_hook(lambda _, inputs, layer=layer: keep(layer, inputs[0])))
            else:
                hooks.append(layer.module.register_forward_hook(lambda _, _inputs, output, layer=layer: keep(layer, output)))
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def records(self, accelerator: Accelerator) -> list[dict[str, Any]]:
        """Return one record a layer: the last step's gradient, the weights after it, and the mean of the watched pre-activations.

        All processes call it together. Raises TrainingDivergedError for numbers that are not finite.
        """
        means = accelerator.reduce(torch.stack([self._means[layer.number] for layer in self.layers]), "mean")
        records = []
        for layer, mean in zip(self.layers, means.tolist(), strict=True):
            values = (layer.parameter, layer.parameter.grad)
            if not all(bool(value.isfinite().all()) for value in values if value is not None):  # they have no singular values
                raise _not_finite(layer)
            record = {**_measure(layer, self.settings.bins), "preactivation_mean": mean}  # Fig. 4, by the text of the paper
            if not all(math.isfinite(value) for value in record.values() if isinstance(value, float)):
                raise _not_finite(layer)
            records.append(record)
        return records


def _not_finite(layer: WeightedLayer) -> TrainingDivergedError:
    return TrainingDivergedError(f"layer {layer.number}: weights, gradients or outputs are not finite.")


def _activations_after(network: nn.Module) -> dict[int, nn.Module]:
    """Return the activation that follows each layer, by the layer's number; the last layer has none."""
    numbers = {layer.module: layer.number for layer in weighted_layers(network)}
    found: dict[int, nn.Module] = {}
    waiting: list[int] = []
    for module in network.modules():
        if module in numbers:
            waiting.append(numbers[module])
        elif isinstance(module, nn.LeakyReLU | nn.ReLU):
            found |= dict.fromkeys(waiting, module)
            waiting = []
    return found


@torch.no_grad()
def _measure(layer: WeightedLayer, bins: int) -> dict[str, Any]:
    """Return the statistics of a layer's gradient and weight that probes.jsonl records.

    Under SN and MSN the weight is W / sigma(W) with the largest singular value itself. The sigma that the layer uses is that of
    the power iteration before the last update, at which the largest singular value may by now be many times as large.
    """
    parameter, estimate = layer.parameter, layer.estimated_sigma
    gradient = parameter.grad
    assert gradient is not None
    gradient = gradient.float()
    singular = torch.linalg.svdvals(parameter.float().flatten(1))
    sigma = singular[0].clone()
    divisor = torch.ones_like(sigma) if estimate is None or sigma == 0 else sigma
    weight, singular = parameter.float() / divisor, singular / divisor
    size = gradient.abs()
    largest = float(size.max())
    edge = largest or 1.0
    found = {
        "layer": layer.number,
        "name": layer.name,
        "shape": list(parameter.shape),
        "gradient_zero": float((size == 0).float().mean()),  # Fig. 1
        "gradient_below": {f"{t:g}": round(float((size < t).float().mean()), 6) for t in THRESHOLDS},
        "gradient_mean": float(gradient.mean()),
        "gradient_std": float(gradient.std()),
        "gradient_max": largest,
        # Fig. 5: counts of equal bins from -gradient_max to gradient_max
        "gradient_histogram": torch.histc(gradient.cpu(), bins, -edge, edge).int().tolist(),
        "weight_mean": float(weight.mean()),  # Fig. 3 and 4: W / sigma(W) under SN and MSN, else W
        "weight_std": float(weight.std()),
        "parameter_mean": float(parameter.mean()),  # W before its division by sigma
        "parameter_std": float(parameter.std()),
        "singular_kernel_mean": float(_kernel_singular_values(weight).mean()),  # Fig. 6
        "singular_mean": float(singular.mean()),  # of the same weight as a matrix (outputs, rest)
        "singular_max": float(singular[0]),
        "stable_rank": layer.stable_rank,
    }
    # Under SN and MSN: the largest singular value of W, and the estimate of it by which the layer divides.
    return found if estimate is None else found | {"sigma": float(sigma), "sigma_estimate": estimate}


def _kernel_singular_values(weight: Tensor) -> Tensor:
    """Return the largest singular value of each kernel, (outputs x inputs,); a dense layer is one kernel."""
    kernels = weight.flatten(0, 1) if weight.dim() == 4 else weight[None]
    return torch.linalg.matrix_norm(kernels, ord=2)
