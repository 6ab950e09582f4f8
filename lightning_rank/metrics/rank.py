"""Ranks of the latents of a whole split.

Each has the state of :class:`LatentSpectrum`, so that a ``MetricCollection`` of them accumulates once.
"""

from typing import Any

import torch
from torch import Tensor

from lightning_rank import functional
from lightning_rank.metrics.latent_spectrum import LatentSpectrum


class EffectiveRank(LatentSpectrum):
    """Effective rank of latents: :func:`lightning_rank.functional.effective_rank` of their singular values.

    Args, shapes and errors are those of :class:`LatentSpectrum`; ``compute`` gives a float64 scalar.

    Source: Roy and Vetterli 2007.

    Example:
        >>> metric = EffectiveRank(2)
        >>> metric.update(torch.tensor([[1.0, 1.0], [-1.0, -1.0], [1.0, -1.0], [-1.0, 1.0]]))
        >>> round(metric.compute().item(), 6)
        2.0
    """

    def compute(self) -> Tensor:
        """The effective rank of everything taken in."""
        return functional.effective_rank(self.singular_values())


class NumericalRank(LatentSpectrum):
    """Numerical rank of latents: :func:`lightning_rank.functional.numerical_rank` of their singular values.

    Args:
        dim: Width of the latents.
        variance_rtol: Directions count whose variance exceeds this fraction of the largest.
        kwargs: Those of :class:`LatentSpectrum`.

    Raises:
        ValueError: ``variance_rtol`` is not in [0, 1); and as :class:`LatentSpectrum`.

    Example:
        >>> metric = NumericalRank(2)
        >>> metric.update(torch.tensor([[1.0, 1.0], [-1.0, -1.0]]))
        >>> metric.compute()
        tensor(1)
    """

    def __init__(self, dim: int, *, variance_rtol: float = 1e-3, **kwargs: Any) -> None:
        super().__init__(dim, **kwargs)
        functional.numerical_rank(torch.ones(1), variance_rtol=variance_rtol)  # refuses a bad threshold now
        self.variance_rtol = variance_rtol

    def compute(self) -> Tensor:
        """The numerical rank of everything taken in."""
        return functional.numerical_rank(self.singular_values(), variance_rtol=self.variance_rtol)


class StableRank(LatentSpectrum):
    """Stable rank of latents: :func:`lightning_rank.functional.stable_rank` of their singular values.

    Args, shapes and errors are those of :class:`LatentSpectrum`; ``compute`` gives a float64 scalar.

    Source: Rudelson and Vershynin 2007.

    Example:
        >>> metric = StableRank(2)
        >>> metric.update(torch.tensor([[2.0, 0.0], [-2.0, 0.0], [0.0, 1.0], [0.0, -1.0]]))
        >>> round(metric.compute().item(), 6)
        1.25
    """

    def compute(self) -> Tensor:
        """The stable rank of everything taken in."""
        return functional.stable_rank(self.singular_values())


class ParticipationRatio(LatentSpectrum):
    """Participation ratio of latents: :func:`lightning_rank.functional.participation_ratio` of their variances.

    Args, shapes and errors are those of :class:`LatentSpectrum`; ``compute`` gives a float64 scalar.

    Source: Gao et al. 2017.

    Example:
        >>> metric = ParticipationRatio(2)
        >>> metric.update(torch.tensor([[1.0, 1.0], [-1.0, -1.0], [1.0, -1.0], [-1.0, 1.0]]))
        >>> round(metric.compute().item(), 6)
        2.0
    """

    def compute(self) -> Tensor:
        """The participation ratio of everything taken in."""
        return functional.participation_ratio(self.singular_values())
