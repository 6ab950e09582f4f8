"""Count, mean and centred second moment of rows, and their exact merge."""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

#: Smallest singular value, relative to the largest, that a float64 second moment can tell from rounding.
RESOLUTION = 5e-8

# Below this times the length of the mean, a deviation may be what the sum of equal rows was rounded by: up to 8 times
# the rounding of a number, in sums of millions.
_ROUNDING = 32 * torch.finfo(torch.float64).eps

# Longer rows overflow when squared in float64: they count as bad, as infinite ones do.
_LONGEST = 1e150

# Long sums lose digits, and float64 copies of many rows take memory.
_CHUNK_ROWS = 2048


class Moments(NamedTuple):
    """First and second moments of ``n`` rows of width ``dim``, all float64.

    Attributes:
        n: Number of rows, shape ``()``.
        mean: Mean row, shape ``(dim,)``.
        scatter: Centred second moment ``sum (z - mean) (z - mean)^T``, shape ``(dim, dim)``.
    """

    n: Tensor
    mean: Tensor
    scatter: Tensor


def row_moments(rows: Tensor, *, overwrite: bool = False) -> Moments:
    """Moments of the rows that are finite; the others are left out.

    The rows are centred by their own mean before they are multiplied, so that an offset, however large, costs no
    digits. Nothing is read back from a device to the host.

    Args:
        rows: Real floating-point tensor, shape ``(n, dim)``. A row with NaN, an infinity or a norm beyond 1e150 is
            left out, and not counted in ``n``.
        overwrite: Work in ``rows``, which are float64 and lost afterwards, instead of in a copy.

    Example:
        >>> row_moments(torch.tensor([[1.0], [3.0], [float("nan")]]))
        Moments(n=tensor(2., dtype=torch.float64), mean=tensor([2.], dtype=torch.float64),
                scatter=tensor([[2.]], dtype=torch.float64))
    """
    # All in one place: fresh memory costs more than the arithmetic on it.
    rows = rows if overwrite else rows.to(torch.float64, copy=True)
    good = rows.new_ones(len(rows))
    # On the CPU one norm tells that all is well; elsewhere to ask would make the host wait.
    if not (rows.is_cpu and torch.linalg.vector_norm(rows) <= _LONGEST):
        # 1 for good rows and 0 for bad ones; torch.where is slow on a column.
        good = (torch.linalg.vector_norm(rows, dim=-1) <= _LONGEST).to(torch.float64)
        rows.nan_to_num_(0, 0, 0).mul_(good[:, None])
    count = good.sum()
    mean = rows.sum(0) / count.clamp(min=1)
    return Moments(count, mean, _gram(rows.addr_(good, mean, alpha=-1)))


def merge_moments(first: Moments, second: Moments) -> Moments:
    r"""Moments of two sets of rows together, from the moments of each.

    .. math::
        M = M_a + M_b + \frac{n_a n_b}{n_a + n_b} \delta \delta^T, \qquad \delta = \bar z_b - \bar z_a

    Source: Chan, Golub and LeVeque, "Algorithms for computing the sample variance", Am. Stat. 37(3), 1983.

    Example:
        >>> a, b = torch.randn(5, 3), torch.randn(7, 3)
        >>> whole = row_moments(torch.cat([a, b]))
        >>> torch.allclose(merge_moments(row_moments(a), row_moments(b)).scatter, whole.scatter)
        True
    """
    count = first.n + second.n
    weight = second.n / count.clamp(min=1)
    delta = second.mean - first.mean
    scatter = torch.addr(first.scatter, delta * (first.n * weight), delta).add_(second.scatter)
    return Moments(count, first.mean + delta * weight, scatter)


def pool_moments(n: Tensor, mean: Tensor, scatter: Tensor) -> Moments:
    r"""Moments of several sets of rows together, from the counts and means of each and the sum of their scatters.

    .. math::
        M = \sum_i M_i + \sum_i n_i (\bar z_i - \bar z) (\bar z_i - \bar z)^T

    Args:
        n: Counts, shape ``(sets,)``.
        mean: Means, shape ``(sets, dim)``.
        scatter: Sum of the scatters, shape ``(dim, dim)``; written into.

    Source: Chan, Golub and LeVeque 1983, as :func:`merge_moments`.

    Example:
        >>> sets = [row_moments(torch.tensor([[1.0]])), row_moments(torch.tensor([[3.0]]))]
        >>> n, mean, scatter = (torch.stack(parts) for parts in zip(*sets))
        >>> pool_moments(n, mean, scatter.sum(0)).scatter
        tensor([[2.]], dtype=torch.float64)
    """
    count = n.sum()
    pooled = (n @ mean) / count.clamp(min=1)
    between = mean - pooled
    return Moments(count, pooled, scatter.addmm_(between.T * n, between))


def finite_moments(batches: Iterable[Tensor], argument: str) -> Moments:
    """Moments of the rows of all batches, on the CPU, in memory that does not grow with the number of rows.

    Args:
        batches: Tensors as :func:`row_moments` takes them.
        argument: What the caller calls them, for the error.

    Raises:
        ValueError: There are no rows, or some are not finite.

    Example:
        >>> finite_moments([torch.zeros(2, 3), torch.ones(1, 3)], "latents").n
        tensor(3., dtype=torch.float64)
    """
    merged, rows = None, 0
    for batch in batches:
        rows += len(batch)
        for chunk in batch.split(_CHUNK_ROWS):
            moments = row_moments(chunk.cpu())
            merged = moments if merged is None else merge_moments(merged, moments)
    if merged is None or rows == 0:
        raise ValueError(f"{argument}: expected one row or more, got none")
    if merged.n < rows:
        bad = rows - int(merged.n)
        raise ValueError(f"{argument}: expected finite rows, got NaN or infinities in {bad} of {rows}")
    return merged


def principal_deviations(moments: Moments) -> Tensor:
    r"""Standard deviations along the principal directions, descending.

    .. math:: \sigma_k = \sqrt{\lambda_k(M) / n}

    which are the singular values of the centred ``(n, dim)`` rows over ``sqrt(n)``. A value below
    :data:`RESOLUTION` times the largest, or 7e-15 times the length of the mean, cannot be told from rounding and is
    given as 0.

    Args:
        moments: As made by :func:`row_moments` or :func:`merge_moments`.

    Returns:
        float64, shape ``(dim,)``; NaN if there are no rows.

    Example:
        >>> principal_deviations(row_moments(torch.tensor([[3.0, 0.0], [-3.0, 0.0]])))
        tensor([3., 0.], dtype=torch.float64)
    """
    return _deviations(torch.linalg.eigvalsh(_covariance(moments)), moments)


def principal_directions(moments: Moments) -> tuple[Tensor, Tensor]:
    """Standard deviations along the principal directions, and the directions.

    Args:
        moments: As made by :func:`row_moments` or :func:`merge_moments`.

    Returns:
        The deviations of :func:`principal_deviations`, shape ``(dim,)``, and the directions as orthonormal columns,
        shape ``(dim, dim)``, both float64. A direction is signed so that its largest entry is positive.

    Example:
        >>> deviations, directions = principal_directions(row_moments(torch.tensor([[0.0, -3.0], [0.0, 3.0]])))
        >>> deviations.tolist(), directions[:, 0].tolist()
        ([3.0, 0.0], [0.0, 1.0])
    """
    variances, directions = torch.linalg.eigh(_covariance(moments))
    directions = directions.flip(-1)
    largest = directions.gather(0, directions.abs().argmax(0, keepdim=True))
    return _deviations(variances, moments), directions * torch.where(largest < 0, -1, 1)


def _covariance(moments: Moments) -> Tensor:
    return moments.scatter / moments.n.clamp(min=1)


def _deviations(ascending_variances: Tensor, moments: Moments) -> Tensor:
    deviations = ascending_variances.flip(-1).clamp(min=0).sqrt()
    rounding = torch.maximum(RESOLUTION * deviations[:1], _ROUNDING * torch.linalg.vector_norm(moments.mean))
    return torch.where(moments.n == 0, torch.nan, torch.where(deviations < rounding, 0, deviations))


def upper_strips(matrix: Tensor) -> list[Tensor]:
    """Views of a square matrix that hold all on and above the diagonal: strips of rows, from the diagonal on.

    Example:
        >>> [tuple(strip.shape) for strip in upper_strips(torch.zeros(80, 80))]
        [(32, 80), (32, 48), (16, 16)]
    """
    dim = len(matrix)
    height = max(32, -(-dim // 8))
    return [matrix[start : start + height, start:] for start in range(0, dim, height)]


def mirror_upper(matrix: Tensor) -> Tensor:
    """Write what stands above the diagonal below it, and return the matrix."""
    for strip in upper_strips(matrix):
        start, end = _extent(strip, matrix)
        matrix[end:, start:end] = strip[:, end - start :].T
    return matrix


def _gram(rows: Tensor) -> Tensor:
    """``rows^T rows`` with little more than half of the multiplications."""
    # NumPy has a product for this case, a quarter faster, but its threads do not heed torch.set_num_threads.
    gram = rows.new_empty(rows.shape[1], rows.shape[1])
    for strip in upper_strips(gram):
        start, end = _extent(strip, gram)
        torch.mm(rows[:, start:end].T, rows[:, start:], out=strip)
    return mirror_upper(gram)


def _extent(strip: Tensor, matrix: Tensor) -> tuple[int, int]:
    start = len(matrix) - strip.shape[1]
    return start, start + len(strip)
