"""The spectra of several layers, of all processes at once."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed

from lightning_rank.metrics.latent_spectrum import LatentSpectrum
from lightning_rank.metrics.pooling import RowStatistics, no_rows, pool_across_processes


def synchronize(
    spectra: Sequence[LatentSpectrum | None],
    *,
    device: torch.device | str | None = None,
    process_group: Any = None,
) -> list[RowStatistics | None]:
    """Statistics of the rows of all processes, from the spectra of each; the same to the bit on every process.

    To be called on every process. There are two collectives, whatever the number of spectra: one agrees on the widths,
    the other sums. Without ``torch.distributed``, or with one process, nothing is exchanged.

    Args:
        spectra: In the same order on every process; ``None`` for one that has no rows here.
        device: Where to exchange, which the backend must know: a GPU for NCCL. ``None`` for that of the first spectrum,
            or the CPU.
        process_group: Of ``torch.distributed``; ``None`` for all processes.

    Returns:
        Moments and the number of dropped rows, on the device; ``None`` where no process has a spectrum. The spectra
        stay as they are.

    Raises:
        ValueError: On all processes, when one of the spectra has another width on another process.

    Example:
        >>> from lightning_rank.functional import principal_deviations
        >>> spectrum = LatentSpectrum(2)
        >>> spectrum.update(torch.tensor([[3.0, 0.0], [-3.0, 0.0]]))
        >>> [both, nothing] = synchronize([spectrum, None])
        >>> principal_deviations(both.moments), int(both.dropped), nothing
        (tensor([3., 0.], dtype=torch.float64), 0, None)
    """
    if device is None:
        device = next((spectrum.device for spectrum in spectra if spectrum is not None), torch.device("cpu"))
    own = [
        None if spectrum is None else RowStatistics(spectrum.as_moments(), spectrum.dropped).to(device)
        for spectrum in spectra
    ]
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    if not own or not distributed or torch.distributed.get_world_size(process_group) == 1:
        return own
    dims = _agreed_dims([0 if spectrum is None else spectrum.dim for spectrum in spectra], device, process_group)
    known = [statistics or no_rows(dim, device) for statistics, dim in zip(own, dims, strict=True) if dim > 0]
    pooled = iter(pool_across_processes(known, process_group) if known else [])
    return [next(pooled) if dim > 0 else None for dim in dims]


def _agreed_dims(dims: list[int], device: torch.device | str, process_group: Any) -> list[int]:
    """The widths, of which a process without rows knows none."""
    bounds = torch.tensor([(dim, -dim if dim > 0 else -(2**62)) for dim in dims], device=device)
    torch.distributed.all_reduce(bounds, torch.distributed.ReduceOp.MAX, group=process_group)
    for index, (largest, smallest) in enumerate(bounds.abs().tolist()):
        if 0 < smallest < largest:
            raise ValueError(
                f"spectra[{index}]: expected the same width on all processes, got {smallest} on one and {largest} on "
                "another"
            )
    return bounds[:, 0].tolist()
