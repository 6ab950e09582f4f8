"""Figures of several panels that show rows of measurements."""

import itertools
from collections.abc import Sequence
from statistics import median
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from tables import Row, Rows, different, values, where

from rank_trainer.report.plots import COLOURS


def panels(
    rows: Rows, across: str, down: str | None = None, *, size: tuple[float, float], **options: Any
) -> tuple[Figure, list[tuple[Axes, list[Row]]]]:
    """A panel for each value at a key, three in a row, or each pair of values at two, with the rows that have it."""
    figure = Figure(figsize=size, dpi=120, layout="constrained")
    columns, lines = different(rows, across), different(rows, down) if down else [None]
    wide = len(columns) if down else min(len(columns), 3)
    grid = figure.subplots(-(-len(lines) * len(columns) // wide), wide, squeeze=False, **options)
    found = []
    for axes, (line, column) in zip(grid.flat, itertools.product(lines, columns), strict=False):
        axes.set_title(f"{column}" if line is None else f"{line}, {across} {column}", fontsize=10)
        found.append((axes, where(rows, **{across: column} | ({down: line} if down else {}))))
    for axes in grid.flat[len(found) :]:
        axes.set_axis_off()
    return figure, found


def curves(axes: Axes, rows: Rows, x: str, y: str, by: str, style: str = "-", label: str = "{}") -> None:
    """The median of ``y`` at each ``x``, in a colour and marker for each value at ``by``; without style all as dots."""
    for value, colour, marker in zip(different(rows, by), itertools.cycle(COLOURS), itertools.cycle("osv^Dx")):
        some = where(rows, **{by: value})
        xs = different(some, x) if style else values(some, x)
        ys = [median(values(some, y, **{x: at})) for at in xs] if style else values(some, y)
        axes.plot(
            xs, ys, linestyle=style or "none", marker=marker, color=colour, markersize=4, label=label.format(value)
        )


def finish(figure: Figure, x: str, y: str, ticks: Sequence[float] = ()) -> Figure:
    """Names of the axes, a grid, a logarithmic scale with these ticks, and one legend for all panels."""
    handles: dict[str, Any] = {}
    for axes in figure.axes:
        axes.grid(alpha=0.3)
        axes.set_xlabel(x if axes.get_subplotspec().is_last_row() else "")
        axes.set_ylabel(y if axes.get_subplotspec().is_first_col() else "")
        if ticks:
            axes.set(xscale="log", xticks=ticks, xticklabels=[f"{tick:g}" for tick in ticks])
            axes.minorticks_off()
        handles |= {label: handle for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=min(6, len(handles)), frameon=False)
    return figure
