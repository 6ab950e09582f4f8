"""The spectrum of the latents as a picture, sent to the loggers that take pictures."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def spectrum_figure(singular_values: Tensor, title: str, rank: int) -> Figure:
    """Singular values over the largest, on a log axis, with the numerical rank marked.

    Args:
        singular_values: Descending, shape ``(dim,)``.
        title: Shown above.
        rank: Numerical rank, drawn as a line behind that many directions.
    """
    from matplotlib.figure import Figure

    relative = (singular_values / singular_values[0].clamp(min=1e-300)).clamp(min=1e-8).tolist()
    indices = range(1, len(relative) + 1)
    figure = Figure(figsize=(6, 3.6), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    axes.semilogy(indices, relative, marker="o", markersize=3, color="#0072B2")
    axes.axvline(rank + 0.5, color="#D55E00", linestyle="--", label=f"numerical rank {rank}")
    axes.set(xlabel="principal direction", ylabel="singular value / largest", title=title, ylim=(5e-9, 2))
    axes.grid(alpha=0.3)
    axes.legend()
    return figure


def send_picture(loggers: Iterable[Any], key: str, figure: Figure, step: int) -> None:
    """Send a figure to every W&B and TensorBoard logger, of whichever of Lightning's two packages."""
    for logger in loggers:
        kinds = {kind.__name__ for kind in type(logger).__mro__}
        if "WandbLogger" in kinds:
            logger.log_image(key=key, images=[figure], step=step)
        elif "TensorBoardLogger" in kinds:
            logger.experiment.add_figure(key, figure, global_step=step)
