"""Settings and their runs: compared seed by seed, as text and as a picture."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import nan

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter
from tables import Row, markdown

from rank_trainer.report.tables import interval, mean_and_interval

#: Name, colour and marker of each family of settings.
FAMILIES = {
    "plain": ("plain", "#888888", "o"),
    "ours": ("ours", "#0072B2", "o"),
    "irmae": ("IRMAE style", "#D55E00", "s"),
    "narrow": ("plain, narrower", "#009E73", "^"),
    "truncated": ("plain, truncated", "#CC79A7", "v"),
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
    runs: dict[int, Row]

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


def lead_text(lead: tuple[float, float]) -> str:
    """Mean and half-width; a dash where too few seeds have both."""
    return "-" if lead[0] != lead[0] else f"{lead[0]:+.2g} ± {lead[1]:.2g}"


def table(cells: Sequence[Cell], titles: Mapping[str, str]) -> str:
    """A row a setting: means over seeds and 95 % intervals of each measure."""
    return markdown(
        [
            {"": cell.name, "seeds": len(cell.runs)} | {title: shown(cell, key) for key, title in titles.items()}
            for cell in cells
        ]
    )


def draw(cells: Sequence[Cell], titles: Mapping[str, str], rank: str) -> Figure:
    """Every measure against rank, a marker a run; collapsed latents have no rank to be drawn at."""
    figure, panels = grid([key for key in titles if sign(key) and any(cell.values(key) for cell in cells)], titles, 3)
    present = {cell.family for cell in cells}
    families = {family: look for family, look in FAMILIES.items() if family in present}
    for measure, axis in panels.items():
        for family, (label, colour, marker) in reversed(families.items()):  # the plain network on top
            runs = [run for cell in cells if cell.family == family for run in cell.runs.values() if measure in run]
            x, y = ([run[key] for run in runs if run.get(rank, 0) > 0] for key in (rank, measure))
            axis.plot(x, y, marker, color=colour, label=label, markersize=5, markeredgewidth=0, alpha=0.7)
        axis.set_xlabel(f"{titles[rank]} of the latents")
        axis.set_xscale("log", base=2)
        axis.xaxis.set_major_formatter("{x:g}")
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles[::-1], labels[::-1], loc="outside lower center", ncols=len(labels), frameon=False)
    return figure


def grid(measures: Sequence[str], titles: Mapping[str, str], columns: int) -> tuple[Figure, dict[str, Axes]]:
    """A panel a measure: distances and errors on a logarithmic scale, a grid."""
    lines = -(-len(measures) // columns)
    figure = Figure(figsize=(12, 3.4 * lines), dpi=100, layout="constrained")
    axes = figure.subplots(lines, columns, squeeze=False).flatten()
    for axis in axes[len(measures) :]:
        axis.set_axis_off()
    for measure, axis in zip(measures, axes, strict=False):
        axis.set_ylabel(titles[measure])
        axis.grid(alpha=0.3)
        if sign(measure) < 0:
            axis.set_yscale("log")
            axis.yaxis.set_major_formatter("{x:g}")
            axis.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(1.5, 0.4)))
    return figure, dict(zip(measures, axes, strict=False))
