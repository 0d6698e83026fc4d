"""Batch normalisation over all processes, on any device."""

import torch
from torch import Tensor, nn

from gan.models.all_reduce import mean_over_processes, processes


class BatchNorm(nn.SyncBatchNorm):
    """Batch normalisation (Ioffe & Szegedy 2015; Eq. 1 of the MSN paper) over all processes, on any device.

    The input is (B, C, ...). Parameters, buffers and state_dict are those of torch's BatchNorm. A single process uses torch's
    kernel, and several CUDA processes use SyncBatchNorm. SyncBatchNorm supports neither CPUs nor second derivatives; in these
    cases the statistics come from differentiable all-reduces.
    """

    def __init__(self, num_features: int, *, twice_differentiable: bool = False) -> None:
        super().__init__(num_features)
        self.twice_differentiable = twice_differentiable

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or processes() == 1:
            return nn.modules.batchnorm._BatchNorm.forward(self, x)
        if x.is_cuda and not self.twice_differentiable:
            return super().forward(x)
        count = x.numel() // x.shape[1] * processes()
        if count == 1:
            raise ValueError("batch norm needs more than one value per channel in training")
        with torch.autocast(x.device.type, enabled=False):
            values = x if x.dtype == torch.float64 else x.float()
            others = [d for d in range(x.dim()) if d != 1]
            # Two passes, since E[x^2] - E[x]^2 loses digits where the mean is large.
            mean = mean_over_processes(values.mean(others, keepdim=True))
            centred = values - mean
            variance = mean_over_processes(centred.square().mean(others, keepdim=True))
            with torch.no_grad():
                assert self.running_mean is not None and self.running_var is not None
                assert self.num_batches_tracked is not None and self.momentum is not None
                self.num_batches_tracked.add_(1)
                self.running_mean.lerp_(mean.flatten().to(self.running_mean.dtype), self.momentum)
                unbiased = variance.flatten() * (count / (count - 1))
                self.running_var.lerp_(unbiased.to(self.running_var.dtype), self.momentum)
            shape = mean.shape
            scale = self.weight.view(shape) * (variance + self.eps).rsqrt()
            return (centred * scale + self.bias.view(shape)).to(x.dtype)
