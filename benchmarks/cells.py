"""Settings and their runs: compared seed by seed, as text and as a picture."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import nan
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter

sys.path.append(str(Path(__file__).parents[1] / "examples"))
from rank_trainer.report.tables import interval, mean_and_interval

#: Name, colour and marker of each family of settings.
FAMILIES = {
    "plain": ("plain", "#888888", "o"),
    "ours": ("ours", "#0072B2", "o"),
    "irmae": ("IRMAE style", "#D55E00", "s"),
    "narrow": ("plain, narrower", "#009E73", "^"),
    "truncated": ("plain, truncated", "#CC79A7", "v"),
    "plain_l2": ("plain, L2", "#E69F00", "<"),
    "ours_l2": ("ours, L2", "#56B4E9", ">"),
}


def sign(measure: str) -> int:
    """1 where more is better, -1 where less is, 0 where neither is."""
    return {"probe": 1, "rank": 0}.get(measure.split("/")[0], -1)


@dataclass(frozen=True)
class Cell:
    """One setting of one family: its runs by seed."""

    family: str
    setting: str
    depth: int
    gain: float | None
    runs: dict[int, dict[str, Any]]

    @property
    def name(self) -> str:
        """As in the tables."""
        return f"{FAMILIES[self.family][0]} {self.setting}".strip()

    def values(self, measure: str) -> dict[int, float]:
        """By seed; a collapsed run has neither probes nor samples."""
        return {seed: run[measure] for seed, run in sorted(self.runs.items()) if measure in run}

    def mean(self, measure: str) -> float:
        """Over seeds."""
        return interval(list(self.values(measure).values()))[0]

    def lead(self, other: "Cell", measure: str) -> tuple[float, float]:
        """By how much it is better than another, seed by seed: mean, and half the width of its 95 % interval."""
        theirs = other.values(measure)
        gaps = [sign(measure) * (own - theirs[seed]) for seed, own in self.values(measure).items() if seed in theirs]
        return interval(gaps) if gaps else (nan, nan)


def shown(cell: Cell, measure: str) -> str:
    """Mean and interval, of the runs that have it."""
    return mean_and_interval(list(cell.values(measure).values()))


def draw(cells: Sequence[Cell], titles: Mapping[str, str], rank: str, path: Path) -> None:
    """Every measure against rank, a marker a run; collapsed latents have no rank to be drawn at."""
    panels = [measure for measure in titles if sign(measure) and any(cell.values(measure) for cell in cells)]
    figure = Figure(figsize=(12, 3.6 * -(-len(panels) // 3)), dpi=100, layout="constrained")
    axes = figure.subplots(-(-len(panels) // 3), 3, squeeze=False).flatten()
    present = {cell.family for cell in cells}
    families = {family: look for family, look in FAMILIES.items() if family in present}
    for axis, measure in zip(axes, panels, strict=False):
        for family, (label, colour, marker) in reversed(families.items()):  # the plain network on top
            runs = [run for cell in cells if cell.family == family for run in cell.runs.values() if measure in run]
            runs = [run for run in runs if run.get(rank, 0) > 0]
            x, y = ([run[key] for run in runs] for key in (rank, measure))
            axis.plot(x, y, marker, color=colour, label=label, markersize=5, markeredgewidth=0, alpha=0.7)
        axis.set(xlabel=f"{titles[rank]} of the latents", ylabel=titles[measure])
        axis.set_xscale("log", base=2)
        axis.xaxis.set_major_formatter("{x:g}")
        finish(axis, measure)
    for axis in axes[len(panels) :]:
        axis.set_axis_off()
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles[::-1], labels[::-1], loc="outside lower center", ncols=len(labels), frameon=False)
    figure.savefig(path)


def finish(axis: Axes, measure: str) -> None:
    """Distances and errors on a logarithmic scale; a grid."""
    if sign(measure) < 0:
        axis.set_yscale("log")
        axis.yaxis.set_major_formatter("{x:g}")
        axis.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(1.5, 0.4)))
    axis.grid(alpha=0.3)
