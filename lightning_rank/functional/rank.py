"""Ranks read off singular values.

Every function takes singular values of shape ``(..., K)``, in any order, and reduces the last axis. The zero
spectrum has rank 0 by every measure, and NaN in gives NaN out (0 where the result counts). A measure of *singular
values* and the same measure of *variances* (their squares) differ: each docstring says which it takes.
"""

import torch
from torch import Tensor

#: Default threshold of the numerical rank, wherever there is one; :func:`numerical_rank` says why.
VARIANCE_RTOL = 1e-3


def effective_rank(singular_values: Tensor) -> Tensor:
    r"""Effective rank: the exponential of the entropy of the singular values.

    .. math:: \exp\Big(-\sum_k p_k \ln p_k\Big), \qquad p_k = \sigma_k / \sum_j \sigma_j

    It is ``r`` when ``r`` singular values are equal and the others zero, lies between 1 and ``K``, and needs no
    threshold. It is taken of singular values, not of variances.

    Args:
        singular_values: Non-negative singular values, shape ``(..., K)``.

    Returns:
        Shape ``(...)``, in the dtype of the input but float32 at least.

    Raises:
        TypeError: ``singular_values`` is not a real floating-point tensor.
        ValueError: It has no last axis, an empty one, or a negative entry.

    Source: Roy and Vetterli, "The effective rank: a measure of effective dimensionality", EUSIPCO 2007.

    Example:
        >>> round(effective_rank(torch.tensor([2.0, 2.0, 2.0, 0.0])).item(), 5)
        3.0
    """
    scaled = _relative(singular_values)
    total = scaled.sum(-1, keepdim=True)
    p = scaled / torch.where(total == 0, 1, total)
    # At zero the entropy has no derivative: such a value is passed over, so that the others have theirs.
    entropy = torch.special.entr(torch.where(p == 0, 1, p)).sum(-1)
    return torch.where(total.squeeze(-1) == 0, 0, entropy.exp())


def numerical_rank(singular_values: Tensor, *, variance_rtol: float = VARIANCE_RTOL) -> Tensor:
    r"""Number of directions whose variance exceeds a fraction of the largest.

    .. math:: \#\{k : \sigma_k^2 > \text{variance\_rtol} \cdot \sigma_1^2\}

    The default keeps what a decoder still needs: ``benchmarks/results/converged`` has what it cost autoencoders to have
    their latents cut to the rank that a threshold names.

    Args:
        singular_values: Non-negative singular values, shape ``(..., K)``.
        variance_rtol: Threshold relative to the largest *variance*; a threshold ``t`` on singular values is ``t**2``.

    Returns:
        int64, shape ``(...)``.

    Raises:
        TypeError: ``singular_values`` is not a real floating-point tensor.
        ValueError: It has no last axis, an empty one, or a negative entry; or ``variance_rtol`` is not in [0, 1).

    Example:
        >>> numerical_rank(torch.tensor([1.0, 0.5, 0.02]), variance_rtol=1e-3)
        tensor(2)
    """
    check_variance_rtol(variance_rtol)
    return (_relative(singular_values).square() > variance_rtol).sum(-1)


def check_variance_rtol(variance_rtol: float) -> None:
    """Refuse a threshold of the numerical rank that is none.

    Raises:
        ValueError: It is not in [0, 1).
    """
    if not 0 <= variance_rtol < 1:
        raise ValueError(f"variance_rtol: expected a number in [0, 1), got {variance_rtol!r}")


def stable_rank(singular_values: Tensor) -> Tensor:
    r"""Stable rank: total variance over the largest variance.

    .. math:: \|A\|_F^2 / \|A\|_2^2 = \sum_k \sigma_k^2 / \sigma_1^2

    Args:
        singular_values: Non-negative singular values, shape ``(..., K)``.

    Returns:
        Shape ``(...)``, between 1 and ``K``, in the dtype of the input but float32 at least.

    Raises:
        TypeError: ``singular_values`` is not a real floating-point tensor.
        ValueError: It has no last axis, an empty one, or a negative entry.

    Source: Rudelson and Vershynin, "Sampling from large matrices", J. ACM 54(4), 2007.

    Example:
        >>> stable_rank(torch.tensor([2.0, 1.0, 1.0]))
        tensor(1.5000)
    """
    return _relative(singular_values).square().sum(-1)


def participation_ratio(singular_values: Tensor) -> Tensor:
    r"""Participation ratio of the variances.

    .. math:: \Big(\sum_k \sigma_k^2\Big)^2 / \sum_k \sigma_k^4

    Args:
        singular_values: Non-negative singular values, shape ``(..., K)``; the squares are taken here.

    Returns:
        Shape ``(...)``, between 1 and ``K``, in the dtype of the input but float32 at least.

    Raises:
        TypeError: ``singular_values`` is not a real floating-point tensor.
        ValueError: It has no last axis, an empty one, or a negative entry.

    Source: Gao et al., "A theory of multineuronal dimensionality, dynamics and measurement", 2017.

    Example:
        >>> round(participation_ratio(torch.tensor([3.0, 3.0, 0.0])).item(), 5)
        2.0
    """
    variances = _relative(singular_values).square()
    total, squares = variances.sum(-1).square(), variances.square().sum(-1)
    return torch.where(squares == 0, 0, total / torch.where(squares == 0, 1, squares))


def spectral_gap(singular_values: Tensor, *, rtol: float | None = None) -> Tensor:
    r"""Position of the largest gap: the rank at which the spectrum falls most.

    .. math:: \arg\max_k \; \sigma_k / \sigma_{k+1}

    with the singular values in descending order. Those below ``rtol`` of the largest are rounding and count as equal
    to that, so that a fall into rounding counts as far as it is known, and a fall inside rounding never. A spectrum
    that does not fall at all has full rank.

    Args:
        singular_values: Non-negative singular values, shape ``(..., K)``.
        rtol: What is rounding, relative to the largest. ``None`` takes ``K * eps``, as ``torch.linalg.matrix_rank``
            does; for the spectrum of a :class:`LatentSpectrum` it is
            :data:`~lightning_rank.functional.moments.RESOLUTION`.

    Returns:
        int64, shape ``(...)``, between 1 and ``K``; 0 for the zero spectrum.

    Raises:
        TypeError: ``singular_values`` is not a real floating-point tensor.
        ValueError: It has no last axis, an empty one, or a negative entry; or ``rtol`` is not in (0, 1).

    Example:
        >>> spectral_gap(torch.tensor([1.0, 0.8, 0.7, 1e-4, 1e-5]))
        tensor(3)
    """
    relative = _relative(singular_values)
    floor = relative.shape[-1] * torch.finfo(relative.dtype).eps if rtol is None else rtol
    if not 0 < floor < 1:
        raise ValueError(f"rtol: expected a number in (0, 1), got {rtol!r}")
    logs = relative.sort(-1, descending=True).values.clamp(min=floor).log()
    falls = torch.cat([logs[..., :-1] - logs[..., 1:], torch.zeros_like(logs[..., :1])], -1)
    # argmax takes the first of equal falls: look from the end, so that "no fall anywhere" means full rank.
    gap = falls.shape[-1] - falls.flip(-1).argmax(-1)
    return torch.where(relative.amax(-1) > 0, gap, 0)


def _relative(singular_values: Tensor) -> Tensor:
    """Singular values over the largest, in float32 at least: no square of them can overflow or all underflow."""
    if not isinstance(singular_values, Tensor) or not singular_values.is_floating_point():
        got = singular_values.dtype if isinstance(singular_values, Tensor) else type(singular_values).__name__
        raise TypeError(f"singular_values: expected a real floating-point tensor, got {got}")
    if singular_values.ndim == 0 or singular_values.shape[-1] == 0:
        raise ValueError(f"singular_values: expected shape (..., K) with K >= 1, got {tuple(singular_values.shape)}")
    if (singular_values < 0).any():
        raise ValueError(
            f"singular_values: expected non-negative values, got a minimum of {singular_values.min().item():g}; "
            "of eigenvalues, pass the clamped square roots"
        )
    values = singular_values.to(torch.promote_types(singular_values.dtype, torch.float32))
    largest = values.amax(-1, keepdim=True)
    return values / torch.where(largest == 0, 1, largest)
