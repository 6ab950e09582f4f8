"""Latents that are not centred: RankMe as it was published, so that published numbers can be compared."""

import torch
from torch import Tensor

from lightning_rank.functional.moments import Moments
from lightning_rank.functional.rank import _relative


def rankme(singular_values: Tensor, *, epsilon: float = 1e-7) -> Tensor:
    r"""RankMe: the exponential of the entropy of the singular values of latents that are *not* centred.

    .. math:: \exp\Big(-\sum_k p_k \ln p_k\Big), \qquad p_k = \sigma_k / \sum_j \sigma_j + \epsilon

    It differs from :func:`~lightning_rank.functional.effective_rank` of the same latents in two ways. The mean of the
    latents counts as a direction, and one far from the origin outweighs all others: the example has two equal
    directions around a mean of 20, which read 2 centred and 1.2 here. And :math:`\epsilon` counts for something in each
    of ``K`` directions, so that a spectrum with zeros reads a little too high.

    Args:
        singular_values: Of the ``(n, dim)`` latents, not centred, up to a common factor, shape ``(..., K)``;
            :func:`uncentred_deviations` gives them. Published values have ``K = min(n, dim)``.
        epsilon: Added to each share; the paper's is 1e-7.

    Returns:
        Shape ``(...)``, in the dtype of the input but float32 at least; NaN for the zero spectrum.

    Raises:
        TypeError: ``singular_values`` is not a real floating-point tensor.
        ValueError: It has no last axis, an empty one, or a negative entry; or ``epsilon`` is negative.

    Source: Garrido et al., "RankMe: assessing the downstream performance of pretrained self-supervised representations
    by their rank", ICML 2023.

    Example:
        >>> from lightning_rank.functional import effective_rank, principal_deviations, row_moments
        >>> around_zero = torch.tensor([[1.0, 1.0], [-1.0, -1.0], [1.0, -1.0], [-1.0, 1.0]])
        >>> moments = row_moments(around_zero + torch.tensor([20.0, 0.0]))
        >>> round(effective_rank(principal_deviations(moments)).item(), 2)
        2.0
        >>> round(rankme(uncentred_deviations(moments)).item(), 2)
        1.21
    """
    check_epsilon(epsilon)
    scaled = _relative(singular_values)
    shares = scaled / scaled.sum(-1, keepdim=True) + epsilon
    return torch.special.entr(shares).sum(-1).exp()


def check_epsilon(epsilon: float) -> None:
    """Refuse what cannot be added to a share.

    Raises:
        ValueError: It is negative.
    """
    if epsilon < 0:
        raise ValueError(f"epsilon: expected 0 or more, got {epsilon!r}")


def uncentred_deviations(moments: Moments) -> Tensor:
    r"""Singular values of the rows as they are, over :math:`\sqrt n`, descending.

    .. math:: \sigma_k = \sqrt{\lambda_k(M / n + \bar z \bar z^T)}

    with the centred second moment :math:`M` and the mean :math:`\bar z`. Values below about 1e-8 of the largest are
    rounding: the mean, where it is large, hides the smallest directions.

    Args:
        moments: As made by :func:`~lightning_rank.functional.row_moments`.

    Returns:
        float64, shape ``(dim,)``; NaN if there are no rows.

    Example:
        >>> from lightning_rank.functional import row_moments
        >>> uncentred_deviations(row_moments(torch.tensor([[3.0, 0.0], [3.0, 0.0]])))
        tensor([3., 0.], dtype=torch.float64)
    """
    second = torch.addr(moments.scatter / moments.n.clamp(min=1), moments.mean, moments.mean)
    values = torch.linalg.eigvalsh(second).flip(-1).clamp(min=0).sqrt()
    return torch.where(moments.n == 0, torch.nan, values)
