"""One collective that brings the moments of all processes together."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed
from torch import Tensor

from lightning_rank.functional.moments import Moments, mirror_upper, pool_moments, upper_strips


class RowStatistics(NamedTuple):
    """What is known of the rows of some latents, of one process or of all.

    Attributes:
        moments: Of the rows that count.
        dropped: Number of rows that do not, int64.
    """

    moments: Moments
    dropped: Tensor

    def to(self, device: torch.device | str) -> "RowStatistics":
        """The same on a device."""
        return RowStatistics(Moments(*(part.to(device) for part in self.moments)), self.dropped.to(device))


def no_rows(dim: int, device: torch.device | str) -> RowStatistics:
    """Statistics of none."""
    zeros = torch.zeros(dim + 1, dim, dtype=torch.float64, device=device)
    return RowStatistics(Moments(zeros[0, 0], zeros[0], zeros[1:]), zeros[0, 0].to(torch.int64))


def pool_across_processes(
    statistics: Sequence[RowStatistics], process_group: Any = None, gather: Callable[..., list[Tensor]] | None = None
) -> list[RowStatistics]:
    r"""Statistics of the rows of all processes, for each of several layers; the same to the bit on every process.

    All scatters are summed in one collective, whatever the number of layers and their widths. It carries counts and
    means too, those of each process in a place of their own, from which the scatter between processes follows. Memory
    and traffic are :math:`O(\text{dim}^2)`, and ``8 (dim + 2)`` bytes for every process.

    Args:
        statistics: Of this process, in the same order and of the same widths on every process.
        process_group: Of ``torch.distributed``; ``None`` for all processes.
        gather: Gathers instead of summing: called with a tensor and ``group``, it gives those of all processes.
    """
    head = torch.cat(
        [part for (n, mean, _), dropped in statistics for part in (n[None], dropped[None].to(n.dtype), mean)]
    )
    strips = [strip.reshape(-1) for (*_, scatter), _ in statistics for strip in upper_strips(scatter)]
    if gather is None:
        heads = head.new_zeros(torch.distributed.get_world_size(process_group), len(head))
        heads[torch.distributed.get_rank(process_group)] = head
        summed = torch.cat([heads.reshape(-1), *strips])
        torch.distributed.all_reduce(summed, group=process_group)
        heads, summed = summed[: heads.numel()].view_as(heads), summed[heads.numel() :]
    else:
        gathered = gather(torch.cat([head, *strips]), group=process_group)
        heads = torch.stack([one[: len(head)] for one in gathered])
        summed = torch.stack([one[len(head) :] for one in gathered]).sum(0)
    pooled = []
    for part in heads.split([2 + len(mean) for (_, mean, _), _ in statistics], dim=1):
        n, dropped, means = part[:, 0], part[:, 1], part[:, 2:]
        scatter = head.new_empty(means.shape[1], means.shape[1])
        for strip in upper_strips(scatter):
            strip.copy_(summed[: strip.numel()].view_as(strip))
            summed = summed[strip.numel() :]
        pooled.append(RowStatistics(pool_moments(n, means, mirror_upper(scatter)), dropped.sum().to(torch.int64)))
    return pooled
