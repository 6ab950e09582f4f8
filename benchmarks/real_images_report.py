"""What came out on real images: tables, a picture, and verdicts by fixed rules."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import report
from matplotlib.figure import Figure

sys.path.append(str(Path(__file__).parents[1] / "examples"))
from sweep_tables import interval, mean_and_interval

#: What is compared, the direction in which it is better, and its name in the tables.
MEASURES = {
    "rank/numerical": (0, "rank"),
    "test/error": (-1, "test error"),
    "probe/all": (1, "probe, all labels"),
    "probe/100": (1, "probe, 100 a class"),
    "probe/10": (1, "probe, 10 a class"),
    "frechet/classifier/gaussian": (-1, "samples, Gaussian"),
    "frechet/classifier/mixture": (-1, "samples, mixture"),
}
CLASSIFICATION = [measure for measure in MEASURES if measure.startswith("probe")]
SAMPLING = [measure for measure in MEASURES if measure.startswith("frechet")]
FAMILIES = {
    "plain": ("plain", "#888888", "o"),
    "ours": ("ours", "#0072B2", "o"),
    "irmae": ("IRMAE style", "#D55E00", "s"),
    "narrow": ("plain, narrower", "#009E73", "^"),
    "truncated": ("plain, truncated", "#CC79A7", "v"),
    "plain_l2": ("plain, L2", "#E69F00", "<"),
    "ours_l2": ("ours, L2", "#56B4E9", ">"),
}
#: Those that a best rank of ours must be better than.
CONTROLS = list(FAMILIES)[2:]
#: Factors that the rank may change by over the depths for it to "hold", and to "hold within limits".
HOLDS, WITHIN_LIMITS = 1.1, 1.5


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

    def has(self, measure: str) -> bool:
        """Whether all runs came to it: a collapsed one has neither probes nor samples."""
        return all(measure in run for run in self.runs.values())

    def interval(self, measure: str) -> tuple[float, float]:
        """Mean over seeds, and half the width of its 95 % interval."""
        return interval([run[measure] for run in self.runs.values()])

    def lead(self, other: "Cell", measure: str) -> tuple[float, float]:
        """By how much it is better than another, seed by seed: mean, and half the width of its 95 % interval."""
        sign = MEASURES[measure][0]
        return interval([sign * (run[measure] - other.runs[seed][measure]) for seed, run in self.runs.items()])


@dataclass(frozen=True)
class Optimum:
    """The best setting by one measure.

    Attributes:
        measure: Key of :data:`MEASURES`.
        best: The setting.
        leads: Over its rivals; ``None`` where it is the rival.
    """

    measure: str
    best: Cell
    leads: dict[str, tuple[float, float] | None]

    @property
    def stands_out(self) -> bool:
        """Whether it is better than each rival with an interval that excludes zero."""
        return all(lead is not None and lead[0] > lead[1] for lead in self.leads.values())


def optimum(measure: str, line: Sequence[Cell], controls: Sequence[Cell]) -> Optimum:
    """The best of a line of settings; its rivals are the ends of the line, by rank, and the best of each control."""
    line = sorted((cell for cell in line if cell.has(measure)), key=lambda cell: cell.interval("rank/numerical")[0])

    def best(of: Sequence[Cell]) -> Cell:
        return max(of, key=lambda cell: MEASURES[measure][0] * cell.interval(measure)[0])

    top = best(line)
    rivals = {"the lowest rank": line[0], "the highest rank": line[-1]}
    for family in CONTROLS:
        some = [cell for cell in controls if cell.family == family and cell.has(measure)]
        if some:
            rivals[FAMILIES[family][0]] = best(some)
    return Optimum(
        measure, top, {name: None if cell is top else top.lead(cell, measure) for name, cell in rivals.items()}
    )


def depth_line(cells: Sequence[Cell], depth: int) -> list[Cell]:
    """From no linear layers over gains at one depth."""
    return [cell for cell in cells if cell.family == "plain" or (cell.family == "ours" and cell.depth == depth)]


def by_depth(cells: Sequence[Cell], family: str, gain: float | None) -> list[Cell]:
    """The same setting at all depths."""
    return sorted((c for c in cells if (c.family, c.gain) == (family, gain)), key=lambda cell: cell.depth)


def change(cells: Sequence[Cell]) -> float:
    """Largest mean effective rank over the smallest."""
    means = [cell.interval("rank/effective")[0] for cell in cells]
    return max(means) / min(means)


def gains(cells: Sequence[Cell]) -> list[float]:
    """Those of ours that were run at more than one depth."""
    found = sorted({cell.gain for cell in cells if cell.family == "ours" and cell.gain is not None})
    return [gain for gain in found if len(by_depth(cells, "ours", gain)) > 1]


def depth_table(cells: Sequence[Cell]) -> str:
    """Numerical and effective rank by depth."""
    rows = []
    lines = {"IRMAE style": ("irmae", None)} | {f"ours, gain {gain:g}": ("ours", gain) for gain in gains(cells)}
    for label, key in lines.items():
        some = by_depth(cells, *key)
        if some:
            ranks = [f"{shown(cell, 'rank/numerical')}; {shown(cell, 'rank/effective')}" for cell in some]
            rows.append([label, *ranks, change(some)])
    depths = sorted({cell.depth for cell in cells if cell.family == "ours"})
    return report.markdown(["numerical; effective rank", *(f"{d} layers" for d in depths), "largest / smallest"], rows)


def depth_verdict(cells: Sequence[Cell], longer: Sequence[Cell]) -> str:
    """Whether the rank depends on the depth."""
    ours = {gain: change(by_depth(cells, "ours", gain)) for gain in gains(cells)}
    trained_on = [change(by_depth(longer, "ours", gain)) for gain in gains(longer)]
    theirs, worst = change(by_depth(cells, "irmae", None)), max([*ours.values(), *trained_on])
    verdict = "holds" if worst <= HOLDS else "holds within limits" if worst <= WITHIN_LIMITS else "does not hold here"
    changes = ", ".join(f"{ours[gain]:.2f} at gain {gain:g}" for gain in ours)
    after = ", ".join(f"{factor:.2f} at gain {gain:g}" for gain, factor in zip(gains(longer), trained_on, strict=True))
    return (
        f"**The rank does not depend on the depth: {verdict}.** Over the depths the mean effective rank of ours "
        f"changes by a factor of {changes}; trained longer, {after}; IRMAE style by {theirs:.3g}. (Holds: {HOLDS} at "
        f"most; within limits: {WITHIN_LIMITS}.)"
    )


def optimum_verdict(purpose: str, measures: Sequence[str], found: Sequence[Optimum], longer: Sequence[Optimum]) -> str:
    """Whether a rank is best for a purpose."""
    some = [pair for pair in zip(found, longer, strict=True) if pair[0].measure in measures]
    claimed = [MEASURES[now.measure][1] for now, later in some if now.stands_out and later.stands_out]
    verdict = f"holds by {', '.join(claimed)}" if claimed else "does not hold here"
    bests = "; ".join(
        f"{MEASURES[now.measure][1]}: {now.best.name}, rank {shown(now.best, 'rank/numerical')}; trained longer "
        f"{later.best.name}, rank {shown(later.best, 'rank/numerical')}"
        for now, later in some
    )
    return f"**A rank that is best for {purpose}: {verdict}.** Best by mean over seeds: {bests}."


def optima_table(found: Sequence[Optimum]) -> str:
    """For each measure the best setting and its leads."""
    rows = []
    for one in found:
        leads = ["is it" if lead is None else f"{lead[0]:+.2g} ± {lead[1]:.2g}" for lead in one.leads.values()]
        name = MEASURES[one.measure][1]
        rows.append([name, one.best.name, shown(one.best, "rank/numerical"), *leads, "yes" if one.stands_out else "no"])
    rivals = list(dict.fromkeys(name for one in found for name in one.leads))
    return report.markdown(["measure", "best", "its rank", *rivals, "stands out"], rows)


def table(cells: Sequence[Cell]) -> str:
    """A row a setting: means over seeds and 95 % intervals."""
    rows = [[cell.name, len(cell.runs), *(shown(cell, m) for m in MEASURES)] for cell in cells]
    return report.markdown(["", "seeds", *(name for _, name in MEASURES.values())], rows)


def draw(cells: Sequence[Cell], path: Path) -> None:
    """Every measure against rank, a marker a setting."""
    panels = [measure for measure in list(MEASURES)[1:] if any(cell.has(measure) for cell in cells)]
    figure = Figure(figsize=(12, 3.6 * -(-len(panels) // 3)), dpi=100, layout="constrained")
    axes = figure.subplots(-(-len(panels) // 3), 3, squeeze=False).flatten()
    for axis, measure in zip(axes, panels, strict=False):
        for family, (label, colour, marker) in FAMILIES.items():
            of = [cell for cell in cells if cell.family == family and cell.has(measure)]
            x, y = ([cell.interval(m)[0] for cell in of] for m in ("rank/numerical", measure))
            bars = [cell.interval(measure)[1] for cell in of]
            axis.errorbar(x, y, bars, fmt=marker, color=colour, label=label, markersize=5, linewidth=1, alpha=0.85)
        axis.set(xlabel="numerical rank of the latents", ylabel=MEASURES[measure][1], xscale="log")
        axis.grid(alpha=0.3)
    for axis in axes[len(panels) :]:
        axis.set_axis_off()
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    figure.savefig(path)


def shown(cell: Cell, measure: str) -> str:
    """Mean and interval."""
    return mean_and_interval([run[measure] for run in cell.runs.values()]) if cell.has(measure) else "-"
