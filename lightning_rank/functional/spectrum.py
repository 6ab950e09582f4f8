"""What else is read off a spectrum: directions for a share of the variance, how it decays, how it is conditioned."""

import torch
from torch import Tensor

from lightning_rank.functional.rank import _relative


def directions_for_variance(singular_values: Tensor, *, share: float = 0.95) -> Tensor:
    r"""Number of leading directions that together hold a share of the variance.

    .. math:: \min\Big\{r : \sum_{k \le r} \sigma_k^2 \ge \text{share} \cdot \sum_k \sigma_k^2\Big\}

    Args:
        singular_values: Non-negative singular values, shape ``(..., K)``; the squares are taken here.
        share: Of the total variance, in (0, 1].

    Returns:
        int64, shape ``(...)``; 0 for the zero spectrum.

    Raises:
        TypeError: ``singular_values`` is not a real floating-point tensor.
        ValueError: It has no last axis, an empty one, or a negative entry; or ``share`` is not in (0, 1].

    Source: the usual cut of a principal component analysis (Jolliffe, "Principal Component Analysis", 2002, 6.1.1).

    Example:
        >>> directions_for_variance(torch.tensor([3.0, 1.0, 0.1]), share=0.95)  # 9, 1 and 0.01 of 10.01
        tensor(2)
    """
    check_share(share)
    variances = _relative(singular_values).to(torch.float64).square().sort(-1, descending=True).values
    held = variances.cumsum(-1)
    missing = held < share * held[..., -1:]
    found = torch.where(held[..., -1] > 0, missing.sum(-1) + 1, 0)
    return torch.where(held[..., -1].isnan(), 0, found)


def check_share(share: float) -> None:
    """Refuse a share of the variance that is none.

    Raises:
        ValueError: It is not in (0, 1].
    """
    if not 0 < share <= 1:
        raise ValueError(f"share: expected a number in (0, 1], got {share!r}")


def power_law_exponent(singular_values: Tensor, *, first: int = 1, last: int | None = None) -> Tensor:
    r"""Exponent of the power law that the variances follow, alpha-ReQ's :math:`\alpha`.

    .. math:: \sigma_k^2 \propto k^{-\alpha}, \qquad k = \text{first}, \dots, \text{last}

    the straight line through :math:`(\ln k, \ln \sigma_k^2)` by least squares weighted by :math:`1/k`, as in the
    analysis that the measure comes from. Zeros count as outside the range. An exponent near 1 is said to go with good
    features; a larger one means fewer directions.

    Args:
        singular_values: Non-negative singular values, shape ``(..., K)``; the squares are taken here.
        first: Number of the first direction that is fitted, from 1. Published values leave the leading ones out.
        last: Number of the last; ``None`` for all.

    Returns:
        Shape ``(...)``, in the dtype of the input but float32 at least; NaN with fewer than two directions to fit.

    Raises:
        TypeError: ``singular_values`` is not a real floating-point tensor.
        ValueError: It has no last axis, an empty one, or a negative entry; or ``first`` and ``last`` are no range.

    Source: Agrawal et al., "alpha-ReQ: assessing representation quality in self-supervised learning by measuring
    eigenspectrum decay", NeurIPS 2022; the weights after Stringer et al., Nature 571, 2019.

    Example:
        >>> k = torch.arange(1, 101, dtype=torch.float64)
        >>> round(power_law_exponent(k ** -0.6).item(), 6)
        1.2
    """
    relative = _relative(singular_values).sort(-1, descending=True).values
    last = relative.shape[-1] if last is None else last
    check_fitted_range(first, last)
    values = relative[..., first - 1 : last]
    positions = torch.arange(first, first + values.shape[-1], dtype=values.dtype, device=values.device)
    weights = torch.where(values > 0, 1 / positions, 0)
    x, y = positions.log().expand_as(values), 2 * torch.where(values > 0, values, 1).log()
    total = weights.sum(-1, keepdim=True)
    x = x - (weights * x).sum(-1, keepdim=True) / total
    y = y - (weights * y).sum(-1, keepdim=True) / total
    fitted = (weights > 0).sum(-1) > 1
    slope = (weights * x * y).sum(-1) / torch.where(fitted, (weights * x.square()).sum(-1), 1)
    return torch.where(fitted & ~relative.isnan().any(-1), -slope, torch.nan)


def check_fitted_range(first: int, last: int) -> None:
    """Refuse numbers of directions that are no range to fit a power law to.

    Raises:
        ValueError: ``first`` < 1, or ``last`` <= ``first``.
    """
    if not 1 <= first < last:
        raise ValueError(f"first, last: expected 1 <= first < last, got {first} and {last}")


def condition_number(singular_values: Tensor) -> Tensor:
    r"""Condition number: the largest singular value over the smallest.

    .. math:: \sigma_1 / \sigma_K

    Args:
        singular_values: Non-negative singular values, shape ``(..., K)``.

    Returns:
        Shape ``(...)``, in the dtype of the input but float32 at least; infinite where the smallest is 0, the zero
        spectrum included.

    Raises:
        TypeError: ``singular_values`` is not a real floating-point tensor.
        ValueError: It has no last axis, an empty one, or a negative entry.

    Example:
        >>> condition_number(torch.tensor([4.0, 2.0, 0.5]))
        tensor(8.)
    """
    return 1 / _relative(singular_values).amin(-1)
