"""Spectral norm and mean spectral norm as projections: the weight is overwritten by W / sigma(W)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from gan.models.mean_spectral_norm import MeanSpectralNorm
from gan.models.memory_layout import as_matrix
from gan.models.precision import full_precision
from gan.models.spectral_norm import SpectralNorm, divide_by, power_of_two

SQUARINGS = 8  # of W W^T: as many as 256 power iterations


class ProjectedSpectralNorm(SpectralNorm):
    """Spectral normalisation as the MSN paper's authors released it: no gradient passes through sigma.

    Where the paper divides W by sigma(W) and differentiates the quotient (Eq. 8-9), the released code overwrites the weight by
    W / sigma(W) before each forward pass, and the optimiser updates what is left. Here ``power_iteration`` overwrites it, in
    each forward pass in training mode or, after ``iterate_explicitly``, once before each update. Every pass, also of an
    evaluation or after the weights have changed, divides by the sigma of the present weight, as a constant. sigma is a function
    of W alone: u and v carry nothing from step to step.
    """

    @torch.no_grad()
    def power_iteration(self, iterations: int = 1) -> None:
        """Overwrite W by W / sigma(W), unless in evaluation mode. ``iterations`` has no effect, except that 0 does nothing."""
        if not iterations:
            return
        divided, _, u, v = self._decomposed()
        self.u.copy_(u)
        self.v.copy_(v)
        if self.training:
            # Without telling autograd: a second pass before the first one's backward pass overwrites W by W, up to rounding.
            self.layer.weight.data.copy_(divided)

    @torch.no_grad()
    def sigma(self) -> Tensor:
        """Return the largest singular value of W, without a gradient."""
        return self._decomposed()[1]

    def _divided(self, u: Tensor, v: Tensor) -> Tensor:
        """Return W / sigma(W) with the sigma of the present W as a constant; ``u`` and ``v`` have no effect."""
        return self._decomposed()[0]

    def _decomposed(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return W / sigma(W), which alone has a gradient, and sigma, u (outputs,) and v (rest,).

        A power of the Gram matrix is nearly the outer product of its first eigenvector with itself. The column with the largest
        diagonal entry is never orthogonal to that vector, as a random start could be.
        """
        weight = self.layer.weight
        scale = power_of_two(weight.detach())
        scaled = weight * scale
        with torch.no_grad(), full_precision(weight.device.type):
            matrix, _, backwards = as_matrix(scaled, self._transposed)
            wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
            power = wide @ wide.T
            for _ in range(SQUARINGS):
                power = power / power.norm().clamp_min(torch.finfo(power.dtype).tiny)
                power = power @ power
            first = F.normalize(power.index_select(1, power.diagonal().argmax()[None]).squeeze(1), dim=0)
            if wide is not matrix:
                first = F.normalize(matrix @ first, dim=0)
            v = F.normalize(matrix.T @ first, dim=0)
            u = F.normalize(matrix @ v, dim=0)
            sigma = torch.dot(u, matrix @ v)
        return divide_by(scaled, sigma), sigma / scale, u, backwards(v)


class ProjectedMeanSpectralNorm(ProjectedSpectralNorm, MeanSpectralNorm):
    """Mean spectral normalisation whose W / sigma(W) is a projection, as the paper's authors released it (with ``gain``)."""
