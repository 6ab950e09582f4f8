"""What all processes took in, together."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from lightning.pytorch.strategies import Strategy

from lightning_rank.callbacks._tap import new_spectrum
from lightning_rank.functional import Moments
from lightning_rank.metrics import LatentSpectrum


class Taken(NamedTuple):
    """The rows of all processes.

    Attributes:
        moments: Of the rows that count.
        dropped: Rows left out for a NaN or an infinity.
    """

    moments: Moments
    dropped: int


def synchronize(
    spectra: Sequence[LatentSpectrum | None], strategy: Strategy, device: torch.device
) -> list[Taken | None]:
    """The same on every process: the rows of each spectrum, or ``None`` where no process saw any.

    To be called on every process with as many spectra: one that saw no rows does not know the width, yet takes part.
    """
    dims = torch.tensor([0 if spectrum is None else spectrum.dim for spectrum in spectra], device=device)
    dims = torch.as_tensor(strategy.reduce(dims, reduce_op="max")).tolist()
    with torch.inference_mode(False), torch.no_grad():
        return [
            _taken(new_spectrum(dim, device) if spectrum is None else spectrum) if dim > 0 else None
            for spectrum, dim in zip(spectra, dims, strict=True)
        ]


def _taken(spectrum: LatentSpectrum) -> Taken:
    with spectrum.sync_context():
        moments = spectrum.as_moments()
        return Taken(Moments(*(part.clone() for part in moments)), int(spectrum.dropped_rows))
