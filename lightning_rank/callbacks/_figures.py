"""Pictures of spectra."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_FLOOR = 1e-8  # of the largest value: what is below is drawn there


def spectrum_figure(spectrum: Tensor, title: str, rank: int) -> Figure:
    """A spectrum over its largest value, on a log axis, with the numerical rank marked.

    Args:
        spectrum: Descending, shape ``(dim,)``.
        title: Shown above.
        rank: Numerical rank, drawn as a line behind that many directions.
    """
    from matplotlib.figure import Figure

    relative = _relative(spectrum).tolist()
    figure = Figure(figsize=(6, 3.6), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    axes.semilogy(range(1, len(relative) + 1), relative, marker="o", markersize=3, color="#0072B2")
    axes.axvline(rank + 0.5, color="#D55E00", linestyle="--", label=f"numerical rank {rank}")
    # The same axis from epoch to epoch, unless the spectrum falls out of it.
    bottom = min(5e-5, relative[-1] / 2)
    axes.set(xlabel="principal direction", ylabel="singular value / largest", title=title, ylim=(bottom, 2))
    axes.grid(alpha=0.3)
    axes.legend()
    return figure


def waterfall_figure(spectra: Sequence[Tensor], places: Sequence[float], unit: str, title: str) -> Figure:
    """All spectra so far, one row each from the first to the last, the colour on a log scale.

    Args:
        spectra: One for each row, descending, shape ``(dim,)``.
        places: The epoch or step of each row.
        unit: ``"epoch"`` or ``"step"``.
        title: Shown above.
    """
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure

    rows = torch.stack([_relative(spectrum) for spectrum in spectra]).numpy()
    figure = Figure(figsize=(6, 4.2), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow(
        rows,
        norm=LogNorm(1e-4, 1),
        cmap="viridis",
        aspect="auto",
        interpolation="nearest",
        origin="lower",
        extent=(0.5, rows.shape[1] + 0.5, -0.5, len(rows) - 0.5),
    )
    # The rows are evenly spaced; what they stand for need not be.
    ticks = sorted({round(i * (len(rows) - 1) / 5) for i in range(6)})
    axes.set_yticks(ticks, [f"{places[tick]:g}" for tick in ticks])
    axes.set(xlabel="principal direction", ylabel=unit, title=title)
    figure.colorbar(image, label="singular value / largest", extend="min")
    return figure


def _relative(spectrum: Tensor) -> Tensor:
    return (spectrum / spectrum[0].clamp(min=1e-300)).nan_to_num(0).clamp(min=_FLOOR)
