"""The spectra of several layers, of all processes at once."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed

from lightning_rank.metrics.latent_spectrum import LatentSpectrum
from lightning_rank.metrics.pooling import pool_shares


def synchronize(
    spectra: Sequence[LatentSpectrum | None],
    *,
    device: torch.device | str | None = None,
    process_group: Any = None,
) -> list[LatentSpectrum | None]:
    """Spectra of the rows of all processes, from those of each; the same to the bit on every process.

    To be called on every process. There are two collectives, whatever the number of spectra: one agrees on the widths,
    the other sums. Without ``torch.distributed``, or with one process, nothing is done.

    Args:
        spectra: In the same order on every process; ``None`` for one that has no rows here.
        device: Where to exchange, which the backend must know: a GPU for NCCL. ``None`` for that of the first spectrum,
            or the CPU.
        process_group: Of ``torch.distributed``; ``None`` for all processes.

    Returns:
        Spectra to read with ``singular_values``, ``samples``, ``dropped_rows`` and ``as_moments``; ``None`` where no
        process has one. Those that were given stay as they are, and are returned themselves where nothing is done.

    Raises:
        ValueError: On all processes, when one of the spectra has another width on another process.

    Example:
        >>> spectrum = LatentSpectrum(2)
        >>> spectrum.update(torch.tensor([[3.0, 0.0], [-3.0, 0.0]]))
        >>> [None if pooled is None else pooled.singular_values().tolist() for pooled in synchronize([spectrum, None])]
        [[3.0, 0.0], None]
    """
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return list(spectra)
    if torch.distributed.get_world_size(process_group) == 1:
        return list(spectra)
    if device is None:
        device = next((spectrum.device for spectrum in spectra if spectrum is not None), "cpu")
    dims = _agreed_dims([0 if spectrum is None else spectrum.dim for spectrum in spectra], device, process_group)
    pooled = [LatentSpectrum(dim, sync_on_compute=False).to(device) if dim > 0 else None for dim in dims]
    sums = [
        (total, total if own is None else own) for total, own in zip(pooled, spectra, strict=True) if total is not None
    ]
    if sums:
        shares = pool_shares([own._share().to(device) for _, own in sums], process_group)
        for (total, _), share in zip(sums, shares, strict=True):
            total._adopt(share)
    return pooled


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
