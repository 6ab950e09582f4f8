"""What came out of a sweep: a table, a CSV file and two pictures."""

import csv
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

LABELS = {"plain": "plain autoencoder", "irmae": "IRMAE style", "ours": "orthogonal, lr / depth (ours)"}
# Okabe and Ito's colours, told apart by colour-blind readers too.
COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"]
SETTINGS = ("method", "depth", "gain")
MEASURES = {
    "rank/numerical": "numerical rank",
    "rank/effective": "effective rank",
    "rank/participation": "participation ratio",
    "val/loss": "validation error",
    "seconds": "seconds",
}


def table(results: list[dict[str, Any]]) -> str:
    """A row for each method and depth: the mean over seeds and, of several seeds, the smallest and largest value."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in results:
        groups.setdefault(tuple(row[key] for key in SETTINGS), []).append(row)
    cells = [[*SETTINGS, "seeds", *MEASURES.values()]]
    for settings, rows in groups.items():
        measures = [_spread([row[key] for row in rows if key in row]) for key in MEASURES]
        cells.append([*("-" if value is None else str(value) for value in settings), str(len(rows)), *measures])
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [
        "| " + " | ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in cells
    ]
    rule = "|" + "|".join("-" * (width + 1) + ":" for width in widths) + "|"
    return "\n".join([lines[0], rule, *lines[1:]])


def write_csv(results: list[dict[str, Any]], path: Path) -> None:
    """The results as a CSV file, a row a run."""
    keys = list(dict.fromkeys(key for row in results for key in row if key not in ("history", "singular_values")))
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, keys, extrasaction="ignore", restval="")
        writer.writeheader()
        writer.writerows(results)


def plot_rank_curves(results: list[dict[str, Any]], path: Path) -> None:
    """Effective rank of the validation latents against epoch, a panel a method."""

    def draw(axes: Axes, result: dict[str, Any], **style: Any) -> None:
        history = result["history"]
        axes.plot([row["epoch"] + 1 for row in history], [row["rank/effective"] for row in history], **style)

    figure = _panels(results, draw)
    for axes in figure.axes:
        axes.set(xlabel="epoch", ylim=(0, None))
    figure.axes[0].set_ylabel("effective rank of the latents")
    figure.savefig(path)


def plot_spectra(results: list[dict[str, Any]], path: Path) -> None:
    """Singular values of the validation latents after training, over the largest, a panel a method."""

    def draw(axes: Axes, result: dict[str, Any], **style: Any) -> None:
        values = result["singular_values"]
        largest = max(values[0], 1e-300)
        axes.semilogy(range(1, len(values) + 1), [max(value / largest, 1e-6) for value in values], **style)

    figure = _panels(results, draw)
    for axes in figure.axes:
        axes.set(xlabel="principal direction", ylim=(1e-4, 1.5))
    figure.axes[0].set_ylabel("singular value / largest")
    figure.savefig(path)


def _panels(results: list[dict[str, Any]], draw: Any) -> Figure:
    """A panel for each method with depth, the plain autoencoder in grey in all of them, a line a run."""
    plain = [result for result in results if result["depth"] == 0]
    methods = [m for m in LABELS if any(r["method"] == m and r["depth"] > 0 for r in results)] or ["plain"]
    depths = sorted({result["depth"] for result in results} - {0})
    figure = Figure(figsize=(4.6 * len(methods), 3.8), dpi=150, layout="constrained")
    panels = figure.subplots(1, len(methods), sharey=True, squeeze=False)[0]
    for axes, method in zip(panels, methods, strict=True):
        labelled: set[str] = set()
        for result in [*plain, *(r for r in results if r["method"] == method and r["depth"] > 0)]:
            depth = result["depth"]
            label = f"depth {depth}" if depth else LABELS["plain"]
            colour = COLOURS[depths.index(depth) % len(COLOURS)] if depth else "#888888"
            style = {"color": colour, "linestyle": "-" if depth else "--", "linewidth": 1.8}
            draw(axes, result, label=None if label in labelled else label, **style)
            labelled.add(label)
        axes.set_title(LABELS[method])
        axes.grid(alpha=0.3)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    return figure


def _spread(values: list[float]) -> str:
    if not values:
        return "-"
    mean = f"{sum(values) / len(values):.3g}"
    return mean if len(values) == 1 else f"{mean} ({min(values):.3g} to {max(values):.3g})"
