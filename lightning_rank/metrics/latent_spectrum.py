"""The spectrum of the latents of a whole split, accumulated batch by batch."""

import math
import random
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module
from torchmetrics import Metric
from torchmetrics.utilities.distributed import gather_all_tensors

from lightning_rank.functional._feature_axis import as_rows, resolve_feature_axis
from lightning_rank.functional.moments import Moments, merge_moments, principal_deviations, row_moments
from lightning_rank.metrics.pooling import RowStatistics, pool_across_processes

# Rows that are multiplied at once, or as many as features: beside the product, what else is done to dim^2 numbers then
# costs little.
_BUFFERED_ROWS = 2048


class LatentSpectrum(Metric):
    r"""Standard deviations of latents along their principal directions.

    .. math:: \sigma_k = \sqrt{\lambda_k\Big(\tfrac1n \sum_i (z_i - \bar z)(z_i - \bar z)^T\Big)}

    descending, in float64: the singular values of the centred latents over :math:`\sqrt n`, of all rows of all
    updates and all processes, exactly as if they had been gathered. Memory is :math:`O(\text{dim}^2)` whatever the
    number of rows. A value below 5e-8 of the largest, or 7e-15 of the length of the mean, cannot be told from rounding
    and reads 0.

    A row with NaN or an infinity is dropped and counted in :attr:`dropped_rows`. ``update`` never communicates, and
    waits for the device only if it is given both a mask and ``max_rows``; ``compute`` sums over the processes in one
    collective.

    Args:
        dim: Width of the latents.
        feature_axis: Axis of the latents that holds the features. ``None`` takes axis 1 of ``(B, dim, H, W)`` and the
            last of others; every position counts as a row.
        max_rows: Take in at most so many rows of a batch: one of every k, for the smallest k that does. Which ones
            depends on the number of updates so far alone, and every row is as likely; :attr:`samples` says how many
            there were. ``None`` takes all.
        kwargs: Those of :class:`torchmetrics.Metric`.

    Shape:
        ``update``: ``(..., dim)``, or with the features on ``feature_axis``, and a ``mask`` of the shape of the other
        axes. ``compute``: ``(dim,)``, float64, in units of the latents (a scalar at ``dim=1``, as torchmetrics has
        it); NaN if there were no rows.

    Raises:
        TypeError: ``dim`` or ``max_rows`` is not an int, or latents are not a real floating-point tensor.
        ValueError: ``dim`` or ``max_rows`` < 1, latents are not ``dim`` wide, or a mask has not the shape of their
            positions.

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

    count: Tensor
    mean: Tensor
    scatter: Tensor
    dropped: Tensor
    pending: Tensor

    def __init__(
        self, dim: int, *, feature_axis: int | None = None, max_rows: int | None = None, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        for name, value in (("dim", dim), ("max_rows", 1 if max_rows is None else max_rows)):
            if not isinstance(value, int) or isinstance(value, bool):
                raise TypeError(f"{name}: expected an int, got {type(value).__name__} ({value!r})")
            if value < 1:
                raise ValueError(f"{name}: expected 1 or more, got {value}")
        self.dim = dim
        self.feature_axis = feature_axis
        self.max_rows = max_rows
        # A MetricCollection lets metrics of equal states share them: those that take in other rows have others.
        # It is the first state, for torchmetrics 1.6 looks at no other.
        settings = [math.inf if setting is None else setting for setting in (feature_axis, max_rows)]
        self.add_state("settings", torch.tensor(settings, dtype=torch.float64))
        # No tensor of the state is ever written into: members of a compute group share them, and one made in inference
        # mode must not be written into outside.
        self.add_state("count", torch.zeros((), dtype=torch.float64))
        self.add_state("mean", torch.zeros(dim, dtype=torch.float64))
        self.add_state("scatter", torch.zeros(dim, dim, dtype=torch.float64))
        self.add_state("dropped", torch.zeros((), dtype=torch.int64))
        # Rows that are yet to be multiplied: the first of the buffer, which is used again when they have been.
        self.add_state("pending", torch.zeros(0, dim, dtype=torch.float64))
        self._buffer: Tensor | None = None

    @property
    def samples(self) -> Tensor:
        """Number of rows that count, int64."""
        return self.as_moments().n.to(torch.int64)

    @property
    def dropped_rows(self) -> Tensor:
        """Number of rows left out for a NaN or an infinity, int64."""
        self._flush()
        return self.dropped

    def update(self, latents: Tensor, mask: Tensor | None = None) -> None:
        """Take in a batch of latents, of which positions where the mask is 0 are no rows."""
        if not isinstance(latents, Tensor) or not latents.is_floating_point():
            got = latents.dtype if isinstance(latents, Tensor) else type(latents).__name__
            raise TypeError(f"latents: expected a real floating-point tensor, got {got}")
        axis = resolve_feature_axis(latents.shape, self.feature_axis, self.dim)
        if latents.ndim < 2 or latents.shape[axis] != self.dim:
            raise ValueError(
                f"latents: expected {self.dim} features on axis {axis} of at least two, got shape "
                f"{tuple(latents.shape)}; set dim to their width, or feature_axis to the axis that holds the features"
            )
        rows = latents.detach()
        if mask is not None:
            positions = latents.movedim(axis, -1).shape[:-1]
            if mask.shape != positions:
                raise ValueError(
                    f"mask: expected shape {tuple(positions)}, that of the positions of latents, got "
                    f"{tuple(mask.shape)}; expand it over axes that it has not"
                )
            if self.max_rows is not None or _knows_values(latents):
                rows, axis = rows.movedim(axis, -1)[mask.bool().to(latents.device)], -1
            else:
                # How many rows there are would have to be asked for; bad ones are left out without asking.
                rows = rows.masked_fill((mask == 0).unsqueeze(axis).to(latents.device), torch.nan)
                self.dropped = self.dropped - (mask == 0).sum().to(self.dropped.device)
        if self.max_rows is None or rows.numel() <= self.max_rows * self.dim:
            rows = as_rows(rows, axis)
        else:
            rows = _spread_rows(rows.movedim(axis, -1), self.max_rows, self.update_count)
        self._take(rows.to(self.scatter.device))

    def compute(self) -> Tensor:
        """The standard deviations of everything taken in, shape ``(dim,)``."""
        return self.principal_deviations()

    def principal_deviations(self) -> Tensor:
        """The same, of the state as it stands: without synchronizing, and without torchmetrics' cache."""
        return principal_deviations(self.as_moments())

    def singular_values(self) -> Tensor:
        """The name of 0.1 for :meth:`principal_deviations`."""
        return self.principal_deviations()

    def as_moments(self) -> Moments:
        """Count, mean and scatter of the rows, of the state as it stands."""
        self._flush()
        return Moments(self.count, self.mean, self.scatter)

    def reset(self) -> None:
        """Forget all rows."""
        super().reset()
        self._buffer = None  # who has seen the state may hold rows of it

    def _take(self, rows: Tensor) -> None:
        buffer = self._buffer
        if buffer is None or buffer.device != rows.device:
            with torch.inference_mode(False):
                length = max(_BUFFERED_ROWS, self.dim)
                buffer = torch.empty(length, self.dim, dtype=torch.float64, device=rows.device)
            self._buffer = buffer
        if len(self.pending) and self.pending.data_ptr() != buffer.data_ptr():
            self._flush()  # rows in the buffer of a metric that shares the state, or copies
        filled = len(self.pending)
        while filled + len(rows) >= len(buffer):
            room = len(buffer) - filled
            buffer[filled:].copy_(rows[:room])
            self._merge_rows(row_moments(buffer, overwrite=True), len(buffer))
            filled, rows = 0, rows[room:]
        buffer[filled : filled + len(rows)].copy_(rows)
        self.pending = buffer[: filled + len(rows)]

    def _flush(self) -> None:
        if len(self.pending):
            self._merge_rows(row_moments(self.pending), len(self.pending))
            self.pending = self.pending.new_empty(0, self.dim)

    def _merge_rows(self, new: Moments, rows: int) -> None:
        self._merge(new, (rows - new.n).to(torch.int64))

    def _merge(self, new: Moments, dropped: Tensor) -> None:
        self.dropped = self.dropped + dropped
        self.count, self.mean, self.scatter = merge_moments(Moments(self.count, self.mean, self.scatter), new)

    # torchmetrics would merge, synchronize and copy the tensors of the state one by one.

    def _reduce_states(self, incoming_state: dict[str, Any]) -> None:
        _, count, mean, scatter, dropped, pending = (incoming_state[name] for name in self._defaults)
        self._flush()
        self._merge(Moments(count, mean, scatter), dropped)
        if len(pending):
            self._merge_rows(row_moments(pending), len(pending))

    def _sync_dist(self, dist_sync_fn: Callable[..., Any] = gather_all_tensors, process_group: Any = None) -> None:
        gather = None if dist_sync_fn is gather_all_tensors else dist_sync_fn
        own = RowStatistics(self.as_moments(), self.dropped)
        [pooled] = pool_across_processes([own], process_group or self.process_group, gather)
        (self.count, self.mean, self.scatter), self.dropped = pooled

    def _copy_state_dict(self) -> dict[str, Any]:
        self._flush()
        return self.metric_state

    def __getstate__(self) -> dict[str, Any]:
        self._flush()
        return super().__getstate__() | {"_buffer": None}

    def _apply(self, fn: Callable[[Tensor], Tensor], exclude_state: Sequence[str] = "") -> Module:
        def move(tensor: Tensor) -> Tensor:
            # To other devices, but not to other types: in a narrower one than float64 small values would be lost.
            moved = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        return super()._apply(move, exclude_state)


def _knows_values(latents: Tensor) -> bool:
    """Whether the host can read what is in them without waiting."""
    return latents.is_cpu


def _spread_rows(latents: Tensor, most: int, seed: int) -> Tensor:
    """At most so many of the rows of ``(..., dim)``: one of every ``share``, counted from a random row on."""
    positions = latents[..., 0].numel()
    share = -(-positions // most)
    groups = torch.arange(positions // share, device=latents.device)
    # Which one of a group moves on by the golden ratio: a fixed one would be the same pixel in every image where share
    # divides their size.
    which = groups * 40503 % 2**16 * share // 2**16
    chosen = (groups * share + which + random.Random(seed).randrange(positions)) % positions
    return latents[torch.unravel_index(chosen, latents.shape[:-1])]
