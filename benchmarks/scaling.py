"""Count the cost of a training step and estimate its time on GPUs: the tables of docs/scaling.md."""

import math
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from benchmarks.alternating import ROOT
from benchmarks.steps import prepare
from gan.config import load_config
from gan.training import gan_step
from gan.training.gan_step import train_step
from gan.utils.tables import markdown_table

CONFIGS = {"SN": "cifar10_sngan", "MSN": "cifar10_msngan_written", "WGAN-GP (BN)": "cifar10_wgan_gp_bn"}


@dataclass(frozen=True)
class Cost:
    """The counted cost of one step."""

    flops: float  # of convolutions and matrix products
    bytes: float  # moved in float32 if every operation reads its inputs from memory and writes its outputs there
    operations: int  # each at least one GPU kernel
    gradients: int  # bytes of both networks' gradients in float32
    collectives: int  # all-reduces of a step under several processes
    penalty_flops: float = 0.0  # those of ``flops`` that a gradient penalty adds: float32 under every precision
    penalty_bytes: float = 0.0  # likewise


class _Count(TorchDispatchMode):
    """Add up the FLOPs and bytes of every operation, those of first and second backward passes included."""

    def __init__(self) -> None:
        super().__init__()
        self.flops, self.bytes, self.operations = 0.0, 0.0, 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        if function.overloadpacket in flop_registry:
            self.flops += flop_registry[function.overloadpacket](*args, **(kwargs or {}), out_val=result)
        outputs = [t for t in tree_leaves(result) if isinstance(t, torch.Tensor)]
        inputs = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
        own = {t.untyped_storage().data_ptr() for t in inputs}
        is_view = all(t.untyped_storage().data_ptr() in own for t in outputs) and "_." not in str(function)
        if not is_view:
            self.bytes += sum(t.numel() * t.element_size() for t in inputs + outputs)
            self.operations += 1
        return result


def count(name: str, batch: int, d_batches: str = "auto") -> Cost:
    """Return the cost of a float32 step of ``configs/NAME.yaml`` at full size and ``batch``, on the embedded digits."""
    config = load_config(ROOT / "configs" / f"{name}.yaml", _embedded(batch, d_batches))
    state, stream, context = prepare(config, cpu=True)
    train_step(state, stream, 0, context)  # creates the state of the optimisers
    with _Count() as found:
        train_step(state, stream, 1, context)
    penalty_flops = penalty_bytes = 0.0
    if config.loss.name == "wgan-gp":
        with (
            mock.patch.object(gan_step, "gradient_penalty", lambda discriminator, real, *_: real.new_zeros(())),
            _Count() as rest,
        ):
            train_step(state, stream, 2, context)
        penalty_flops, penalty_bytes = found.flops - rest.flops, found.bytes - rest.bytes
    gradients = sum(4 * p.numel() for network in (state.generator, state.discriminator) for p in network.parameters())
    all_reduces = collectives(name, d_batches)
    return Cost(found.flops, found.bytes, found.operations, gradients, all_reduces, penalty_flops, penalty_bytes)


def collectives(name: str, d_batches: str = "auto") -> int:
    """Return the all-reduces of a step of ``configs/NAME.yaml``: of gradients, one an update; of norms, those that a step takes.

    They are counted among two processes, of which torch pretends one, on networks of 2 channels. G's BatchNorm, for
    which GPUs have kernels, takes one in each of two forward passes (for the update of D and of G) and one backward.
    """
    small = ["model.generator.channels=2", "model.discriminator.channels=2", "model.generator.norm=none"]
    config = load_config(ROOT / "configs" / f"{name}.yaml", [*_embedded(8, d_batches), *small])
    state, stream, context = prepare(config, cpu=True)
    dist.init_process_group("fake", rank=0, world_size=2, store=FakeStore())
    try:
        with mock.patch.object(dist, "all_reduce", wraps=dist.all_reduce) as all_reduce:
            train_step(state, stream, 0, context)
    finally:
        dist.destroy_process_group()
    batch_norm = 4 * 3 if load_config(ROOT / "configs" / f"{name}.yaml").model.generator.norm == "batch" else 0
    return int(all_reduce.call_count) + batch_norm + config.training.d_steps + 1


def _embedded(batch: int, d_batches: str) -> list[str]:
    """Return the settings of a float32 run on the embedded digits."""
    overrides = ["data.name=digits", "data.channels=3", "training.precision=fp32", f"training.batch_size={batch}"]
    return [*overrides, f"training.d_batches={d_batches}"]


@dataclass(frozen=True)
class Machine:
    """A GPU and its links, by the makers' figures. docs/scaling.md says which share of them is assumed."""

    name: str
    flops: float  # a second, bf16
    full_flops: float  # a second, float32 without TF32
    bandwidth: float  # bytes a second of its memory
    launch: float  # seconds of an empty operation
    link: float  # bytes a second between GPUs, each way
    latency: float  # seconds of an empty all-reduce between two GPUs


H200_NODE = Machine("H200, NVLink", 989e12, 67e12, 4.8e12, 5e-6, 450e9, 15e-6)
H200_NETWORK = Machine("H200, 400 Gb/s network", 989e12, 67e12, 4.8e12, 5e-6, 50e9, 30e-6)


def seconds(cost: Cost, machine: Machine, gpus: int, share: float, efficiency: float = 0.3) -> tuple[float, float]:
    """Return the seconds of computing and of communicating in a step, with ``share`` of the counted batch on each of ``gpus``.

    compute = max(operations x launch, share x (flops / (efficiency x peak) + bytes / (2 x bandwidth))): bf16 halves the
    bytes. A gradient penalty counts at the peak of float32, and its bytes are whole.
    communicate = gradients x 2 (n - 1) / n / link + collectives x latency x log2 n (Thakur et al. 2005).
    """
    arithmetic = (cost.flops - cost.penalty_flops) / machine.flops + cost.penalty_flops / machine.full_flops
    work = share * (arithmetic / efficiency + (cost.bytes + cost.penalty_bytes) / 2 / machine.bandwidth)
    compute = max(cost.operations * machine.launch, work)
    if gpus == 1:
        return compute, 0.0
    transfer = cost.gradients * 2 * (gpus - 1) / gpus / machine.link
    return compute, transfer + cost.collectives * machine.latency * math.log2(gpus)


def tables(batch: int = 64) -> str:
    """Return the counted costs and expected times as Markdown."""
    costs = {name: count(config, batch) for name, config in CONFIGS.items()}
    counted = [
        (name, f"{cost.flops / 1e9:.1f}", f"{cost.bytes / 1e9:.2f}", f"{cost.operations:,}", f"{cost.gradients / 1e6:.1f}",
         cost.collectives)
        for name, cost in costs.items()
    ]  # fmt: skip
    expected = []
    for name, cost in costs.items():
        d_steps = 5 if "GP" in name else 1
        for gpus, machine, total in (
            (1, H200_NODE, 64), (1, H200_NODE, 4096), (8, H200_NODE, 64), (8, H200_NODE, 8 * 4096),
            (1000, H200_NETWORK, 1000 * 4096),
        ):  # fmt: skip
            times = seconds(cost, machine, gpus, total / gpus / batch)
            rate = total * d_steps / sum(times)
            expected.append((name, f"{gpus:,}", f"{total:,}", *(f"{1000 * time:.1f}" for time in times), f"{rate:,.0f}"))
    heads = (
        [f"batch {batch}", "GFLOP", "GB moved", "operations", "gradients, MB", "all-reduces"],
        ["", "GPUs", "batch", "compute, ms", "communicate, ms", "real images a second"],
    )
    return f"{markdown_table(heads[0], counted)}\n\n{markdown_table(heads[1], expected)}"


if __name__ == "__main__":
    print(tables())
