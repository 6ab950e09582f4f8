"""The spectrum of the latents of a whole split, accumulated batch by batch."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module
from torchmetrics import Metric

from lightning_rank.functional.feature_axis import as_rows, resolve_feature_axis
from lightning_rank.functional.moments import Moments, merge_moments, principal_deviations, row_moments

_BUFFERED_ROWS = 1024


class LatentSpectrum(Metric):
    r"""Standard deviations of latents along their principal directions.

    .. math:: \sigma_k = \sqrt{\lambda_k\Big(\tfrac1n \sum_i (z_i - \bar z)(z_i - \bar z)^T\Big)}

    descending, in float64: the singular values of the centred latents over :math:`\sqrt n`, of all rows of all
    updates and all processes, exactly as if they had been gathered. Memory is :math:`O(\text{dim}^2)` whatever the
    number of rows. A value below 5e-8 of the largest cannot be told from rounding and reads 0.

    A row with NaN or an infinity is dropped and counted in :attr:`dropped_rows`. ``update`` never waits for the device
    and never communicates.

    Args:
        dim: Width of the latents.
        feature_axis: Axis of the latents that holds the features. ``None`` takes axis 1 of ``(B, dim, H, W)`` and the
            last of others; every position counts as a row.
        kwargs: Those of :class:`torchmetrics.Metric`.

    Shape:
        ``update``: ``(..., dim)``, or with the features on ``feature_axis``. ``compute``: ``(dim,)``, float64, in units
        of the latents (a scalar at ``dim=1``, as torchmetrics has it); NaN if there were no rows.

    Raises:
        TypeError: ``dim`` is not an int, or latents are not a real floating-point tensor.
        ValueError: ``dim`` < 1, or latents are not ``dim`` wide.

    Source: moments merged after Chan, Golub and LeVeque 1983.

    Example:
        >>> spectrum = LatentSpectrum(2)
        >>> spectrum.update(torch.tensor([[3.0, 0.0], [-3.0, 0.0]]))
        >>> spectrum.update(torch.tensor([[0.0, 1.0], [0.0, -1.0]]))
        >>> spectrum.compute()
        tensor([2.1213, 0.7071], dtype=torch.float64)
    """

    is_differentiable = False
    higher_is_better = None
    full_state_update = False

    moments: Tensor
    dropped: Tensor
    pending: list[Tensor]

    def __init__(self, dim: int, *, feature_axis: int | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not isinstance(dim, int) or isinstance(dim, bool):
            raise TypeError(f"dim: expected an int, got {type(dim).__name__} ({dim!r})")
        if dim < 1:
            raise ValueError(f"dim: expected 1 or more, got {dim}")
        self.dim = dim
        self.feature_axis = feature_axis
        # One state for count, mean and second moment, since only together they can be merged; one collective, too.
        self.add_state("moments", torch.zeros(dim + 1, dim + 1, dtype=torch.float64), dist_reduce_fx=_merge_stacked)
        self.add_state("dropped", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("pending", [], dist_reduce_fx=None)

    @property
    def samples(self) -> Tensor:
        """Number of rows that count, int64."""
        return self.as_moments().n.to(torch.int64)

    @property
    def dropped_rows(self) -> Tensor:
        """Number of rows left out for a NaN or an infinity, int64."""
        self._flush()
        return self.dropped

    def update(self, latents: Tensor) -> None:
        """Take in a batch of latents."""
        if not isinstance(latents, Tensor) or not latents.is_floating_point():
            got = latents.dtype if isinstance(latents, Tensor) else type(latents).__name__
            raise TypeError(f"latents: expected a real floating-point tensor, got {got}")
        axis = resolve_feature_axis(latents.shape, self.feature_axis, self.dim)
        if latents.ndim < 2 or latents.shape[axis] != self.dim:
            raise ValueError(
                f"latents: expected {self.dim} features on axis {axis} of at least two, got shape "
                f"{tuple(latents.shape)}; set dim to their width, or feature_axis to the axis that holds the features"
            )
        # A copy: the next layer may write into its input.
        self.pending.append(as_rows(latents.detach(), axis).clone())
        if sum(len(rows) for rows in self.pending) >= _BUFFERED_ROWS:
            self._flush()

    def compute(self) -> Tensor:
        """The standard deviations of everything taken in, shape ``(dim,)``."""
        return self.singular_values()

    def singular_values(self) -> Tensor:
        """The same, of the state as it stands: without synchronizing, and without torchmetrics' cache."""
        return principal_deviations(self.as_moments())

    def as_moments(self) -> Moments:
        """Count, mean and scatter of the rows, of the state as it stands."""
        self._flush()
        return _unpack(self.moments)

    def sync(self, *args: Any, **kwargs: Any) -> None:
        """As in torchmetrics; only the moments cross processes, never rows."""
        self._flush()
        super().sync(*args, **kwargs)

    def _apply(self, fn: Callable[[Tensor], Tensor], exclude_state: Sequence[str] = "") -> Module:
        def move(tensor: Tensor) -> Tensor:
            # To other devices, but not to other types: in a narrower one than float64 small values would be lost.
            moved = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        return super()._apply(move, exclude_state)

    def _flush(self) -> None:
        # The state is replaced, not written into: members of a compute group share it, and a state made in inference
        # mode must not be written into outside.
        for rows in _chunks(self.pending):
            new = row_moments(rows.to(self.moments.device))
            self.moments = _pack(merge_moments(_unpack(self.moments), new))
            self.dropped = self.dropped + (len(rows) - new.n).to(torch.int64)
        self.pending = []


def _chunks(pending: list[Tensor]) -> list[Tensor]:
    """Pending batches as chunks of bounded length: long sums lose digits, and take memory."""
    if not pending:
        return []
    rows = pending[0] if len(pending) == 1 else torch.cat(pending)
    return list(rows.split(2 * _BUFFERED_ROWS))


def _pack(moments: Moments) -> Tensor:
    """``[[count, mean], [mean, scatter]]``."""
    head = torch.cat([moments.n.reshape(1), moments.mean])
    return torch.cat([head[None], torch.cat([moments.mean[:, None], moments.scatter], 1)])


def _unpack(packed: Tensor) -> Moments:
    return Moments(packed[0, 0], packed[0, 1:], packed[1:, 1:])


def _merge_stacked(stacked: Tensor) -> Tensor:
    """Merge ``(processes, dim + 1, dim + 1)``, in the same order and thus to the same bits everywhere."""
    merged = _unpack(stacked[0])
    for packed in stacked[1:]:
        merged = merge_moments(merged, _unpack(packed))
    return _pack(merged)
