"""Ranks of the latents of a whole split.

Each has the state of :class:`LatentSpectrum`, so that a ``MetricCollection`` of them accumulates once.
"""

from typing import Any

from torch import Tensor

from lightning_rank import functional
from lightning_rank.functional.rank import check_variance_rtol
from lightning_rank.functional.spectrum import check_fitted_range, check_share
from lightning_rank.functional.uncentred import check_epsilon
from lightning_rank.metrics.latent_spectrum import LatentSpectrum


class EffectiveRank(LatentSpectrum):
    """Effective rank of latents: :func:`lightning_rank.functional.effective_rank` of their singular values.

    Args, shapes and errors are those of :class:`LatentSpectrum`; ``compute`` gives a float64 scalar.

    Source: Roy and Vetterli 2007.

    Example:
        >>> import torch
        >>> metric = EffectiveRank(2)
        >>> metric.update(torch.tensor([[1.0, 1.0], [-1.0, -1.0], [1.0, -1.0], [-1.0, 1.0]]))
        >>> round(metric.compute().item(), 6)
        2.0
    """

    def compute(self) -> Tensor:
        """The effective rank of everything taken in."""
        return functional.effective_rank(self.principal_deviations())


class NumericalRank(LatentSpectrum):
    """Numerical rank of latents: :func:`lightning_rank.functional.numerical_rank` of their singular values.

    Args:
        dim: Width of the latents.
        variance_rtol: Directions count whose variance exceeds this fraction of the largest.
        kwargs: Those of :class:`LatentSpectrum`.

    Raises:
        ValueError: ``variance_rtol`` is not in [0, 1); and as :class:`LatentSpectrum`.

    Example:
        >>> import torch
        >>> metric = NumericalRank(2)
        >>> metric.update(torch.tensor([[1.0, 1.0], [-1.0, -1.0]]))
        >>> metric.compute()
        tensor(1)
    """

    def __init__(self, dim: int, *, variance_rtol: float = functional.VARIANCE_RTOL, **kwargs: Any) -> None:
        super().__init__(dim, **kwargs)
        check_variance_rtol(variance_rtol)
        self.variance_rtol = variance_rtol

    def compute(self) -> Tensor:
        """The numerical rank of everything taken in."""
        return functional.numerical_rank(self.principal_deviations(), variance_rtol=self.variance_rtol)


class StableRank(LatentSpectrum):
    """Stable rank of latents: :func:`lightning_rank.functional.stable_rank` of their singular values.

    Args, shapes and errors are those of :class:`LatentSpectrum`; ``compute`` gives a float64 scalar.

    Source: Rudelson and Vershynin 2007.

    Example:
        >>> import torch
        >>> metric = StableRank(2)
        >>> metric.update(torch.tensor([[2.0, 0.0], [-2.0, 0.0], [0.0, 1.0], [0.0, -1.0]]))
        >>> round(metric.compute().item(), 6)
        1.25
    """

    def compute(self) -> Tensor:
        """The stable rank of everything taken in."""
        return functional.stable_rank(self.principal_deviations())


class ParticipationRatio(LatentSpectrum):
    """Participation ratio of latents: :func:`lightning_rank.functional.participation_ratio` of their variances.

    Args, shapes and errors are those of :class:`LatentSpectrum`; ``compute`` gives a float64 scalar.

    Source: Gao et al. 2017.

    Example:
        >>> import torch
        >>> metric = ParticipationRatio(2)
        >>> metric.update(torch.tensor([[1.0, 1.0], [-1.0, -1.0], [1.0, -1.0], [-1.0, 1.0]]))
        >>> round(metric.compute().item(), 6)
        2.0
    """

    def compute(self) -> Tensor:
        """The participation ratio of everything taken in."""
        return functional.participation_ratio(self.principal_deviations())


class DirectionsForVariance(LatentSpectrum):
    """Directions that hold a share of the variance: :func:`lightning_rank.functional.directions_for_variance`.

    Args:
        dim: Width of the latents.
        share: Of the total variance, in (0, 1].
        kwargs: Those of :class:`LatentSpectrum`.

    Raises:
        ValueError: ``share`` is not in (0, 1]; and as :class:`LatentSpectrum`.

    Example:
        >>> import torch
        >>> metric = DirectionsForVariance(2, share=0.7)
        >>> metric.update(torch.tensor([[2.0, 0.0], [-2.0, 0.0], [0.0, 1.0], [0.0, -1.0]]))
        >>> metric.compute()
        tensor(1)
    """

    def __init__(self, dim: int, *, share: float = 0.95, **kwargs: Any) -> None:
        super().__init__(dim, **kwargs)
        check_share(share)
        self.share = share

    def compute(self) -> Tensor:
        """How many it takes for everything taken in."""
        return functional.directions_for_variance(self.principal_deviations(), share=self.share)


class PowerLawExponent(LatentSpectrum):
    """Exponent of the power law of the variances: :func:`lightning_rank.functional.power_law_exponent`.

    Args:
        dim: Width of the latents, 2 or more.
        first: Number of the first direction that is fitted, from 1.
        last: Number of the last; ``None`` for all.
        kwargs: Those of :class:`LatentSpectrum`.

    Raises:
        ValueError: ``first`` and ``last`` are no range; and as :class:`LatentSpectrum`.

    Source: Agrawal et al. 2022 (alpha-ReQ).

    Example:
        >>> import torch
        >>> metric = PowerLawExponent(2)
        >>> metric.update(torch.tensor([[2.0, 0.0], [-2.0, 0.0], [0.0, 1.0], [0.0, -1.0]]))
        >>> round(metric.compute().item(), 6)  # variances 2 and 1/2: a quarter at twice the number
        2.0
    """

    def __init__(self, dim: int, *, first: int = 1, last: int | None = None, **kwargs: Any) -> None:
        super().__init__(dim, **kwargs)
        check_fitted_range(first, dim if last is None else last)
        self.first, self.last = first, last

    def compute(self) -> Tensor:
        """The exponent for everything taken in."""
        return functional.power_law_exponent(self.principal_deviations(), first=self.first, last=self.last)


class ConditionNumber(LatentSpectrum):
    """Largest singular value over the smallest: :func:`lightning_rank.functional.condition_number`.

    Args, shapes and errors are those of :class:`LatentSpectrum`; ``compute`` gives a float64 scalar, infinite where
    there is a direction without variance.

    Example:
        >>> import torch
        >>> metric = ConditionNumber(2)
        >>> metric.update(torch.tensor([[2.0, 0.0], [-2.0, 0.0], [0.0, 1.0], [0.0, -1.0]]))
        >>> round(metric.compute().item(), 6)
        2.0
    """

    def compute(self) -> Tensor:
        """The condition of everything taken in."""
        return functional.condition_number(self.principal_deviations())


class RankMe(LatentSpectrum):
    """RankMe as published, of latents that are not centred: :func:`lightning_rank.functional.rankme`.

    Args:
        dim: Width of the latents.
        epsilon: Added to each share of the singular values; the paper's is 1e-7.
        kwargs: Those of :class:`LatentSpectrum`.

    Raises:
        ValueError: ``epsilon`` is negative; and as :class:`LatentSpectrum`.

    Source: Garrido et al. 2023.

    Example:
        >>> import torch
        >>> metric = RankMe(2)
        >>> metric.update(torch.tensor([[1.0, 1.0], [-1.0, -1.0], [1.0, -1.0], [-1.0, 1.0]]))
        >>> round(metric.compute().item(), 5)
        2.0
    """

    def __init__(self, dim: int, *, epsilon: float = 1e-7, **kwargs: Any) -> None:
        super().__init__(dim, **kwargs)
        check_epsilon(epsilon)
        self.epsilon = epsilon

    def compute(self) -> Tensor:
        """RankMe of everything taken in."""
        moments = self.as_moments()
        # Of n rows there are n singular values at most, and each counts for something.
        values = functional.uncentred_deviations(moments)[: max(1, int(moments.n))]
        return functional.rankme(values, epsilon=self.epsilon)
