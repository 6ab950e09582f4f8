"""Verdicts on autoencoders trained to convergence, by rules that were fixed before results were looked at."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import inf, log, nan
from typing import Any

from cells import FAMILIES, Cell, interval, sign

MEASURES = {
    "rank/effective": "effective rank",
    "rank/numerical": "numerical rank",
    "test/error": "test error",
    "frechet/classifier/gaussian": "samples, Gaussian",
    "frechet/classifier/mixture": "samples, mixture",
    "probe/10/standardized": "10 a class, standardized",
    "probe/10/as_is": "10 a class, as they are",
    "probe/100/standardized": "100 a class, standardized",
    "probe/100/as_is": "100 a class, as they are",
    "probe/all/standardized": "all labels, standardized",
    "probe/all/as_is": "all labels, as they are",
}
JUDGED = [measure for measure in MEASURES if sign(measure)]
#: Fewer show nothing, however far apart they are.
MIN_SEEDS = 3
#: Factors that the rank may change by over the depths for it to "hold", and to "hold within limits".
DEPTH_HOLDS, DEPTH_WITHIN_LIMITS = 1.1, 1.5
#: The depth at which gains are compared.
DEPTH = 4
HOLDS, AGAINST, OPEN = "holds", "does not hold", "not shown"
#: What ours is compared with, and at the same what: of validation data, as everything that is chosen.
CONTROLS = {
    "narrow": "rank/effective",
    "truncated": "rank/effective",
    "stopped": "val/error",
    "irmae": "rank/effective",
}


@dataclass(frozen=True)
class Finding:
    """A verdict and what it rests on.

    Attributes:
        verdict: :data:`HOLDS`, :data:`AGAINST` or :data:`OPEN`.
        best: The setting that it is about, if there is one.
        leads: By what it is named for: mean and half the width of the 95 % interval over seeds; positive is better.
    """

    verdict: str
    best: Cell | None
    leads: dict[str, tuple[float, float]]


def cells_at(rows: Iterable[dict[str, Any]], steps: int) -> list[Cell]:
    """The settings as they were at a stop."""
    grouped: dict[tuple[Any, ...], dict[int, dict[str, Any]]] = {}
    for row in rows:
        if row["steps"] == steps:
            family, width, depth, gain = (row[key] for key in ("family", "width", "depth", "gain"))
            names = {"narrow": f"(width {width})", "truncated": f"(to {width})", "plain": ""}
            gained = "" if gain is None else f", gain {gain:g}"
            key = (list(FAMILIES).index(family), depth, gain or 0, width, names.get(family, f"{depth} layers{gained}"))
            grouped.setdefault(key, {})[row["seed"]] = row
    return [Cell(list(FAMILIES)[key[0]], key[4], key[1], key[2] or None, grouped[key]) for key in sorted(grouped)]


def stops_of(rows: Iterable[dict[str, Any]]) -> list[int]:
    """Steps at which more than the plain network was measured."""
    return sorted({row["steps"] for row in rows if row["family"] not in ("plain", "truncated")})


def gain_line(cells: Sequence[Cell]) -> list[Cell]:
    """Ours at one depth, and the plain network."""
    return [cell for cell in cells if (cell.family, cell.depth) == ("ours", DEPTH) or cell.family == "plain"]


def width_line(cells: Sequence[Cell]) -> list[Cell]:
    """Plain networks from the narrowest to the full width."""
    return [cell for cell in cells if cell.family in ("narrow", "plain")]


def time_line(rows: Iterable[dict[str, Any]], steps: int) -> list[Cell]:
    """The plain network at each of its stops up to one."""
    plain = [row for row in rows if row["family"] == "plain" and row["steps"] <= steps]
    by_stop = {steps: cells_at(plain, steps)[0] for steps in sorted({row["steps"] for row in plain})}
    return [Cell("plain", f"at {steps:,} steps", 0, None, cell.runs) for steps, cell in by_stop.items()]


def best_rank(line: Sequence[Cell], measure: str) -> Finding:
    """Whether a rank between the ends of a line of settings is best.

    The ends are the settings of lowest and highest mean effective rank, and of a line that has several families the
    plain network too: it costs nothing. It holds if the best between leads all of them, does not hold if one of them
    leads all between; each by a 95 % interval over seeds that excludes zero.
    """
    line = sorted((cell for cell in line if cell.values(measure)), key=lambda cell: cell.mean("rank/effective"))
    several = len({cell.family for cell in line}) > 1
    ends = [cell for k, cell in enumerate(line) if k in (0, len(line) - 1) or (several and cell.family == "plain")]
    inner = [cell for cell in line if cell not in ends]
    if not inner:
        return Finding(OPEN, None, {})
    best, end = (max(some, key=lambda cell: sign(measure) * cell.mean(measure)) for some in (inner, ends))
    leads = {cell.name: _lead(best, cell, measure) for cell in ends}
    against = [_lead(end, cell, measure) for cell in inner]
    verdict = HOLDS if all(map(_clear, leads.values())) else AGAINST if all(map(_clear, against)) else OPEN
    return Finding(verdict, best, leads)


def at_equal(ours: Cell, control: Sequence[Cell], measure: str, abscissa: str = "rank/effective") -> Finding:
    """Whether ours is better than a control at equal rank, or equal error.

    Seed by seed the control is interpolated, linearly in the logarithm of the abscissa, between its two settings
    around ours; a seed where it does not reach ours on both sides is left out.
    """
    gaps = []
    for seed, value in ours.values(measure).items():
        points = sorted(
            (cell.runs[seed][abscissa], cell.runs[seed][measure])
            for cell in control
            if seed in cell.runs and measure in cell.runs[seed]
        )
        theirs = _interpolated(points, ours.runs[seed][abscissa])
        if theirs is not None:
            gaps.append(sign(measure) * (value - theirs))
    lead = interval(gaps) if len(gaps) >= MIN_SEEDS else (nan, nan)
    return Finding(_verdict(lead), ours, {"": lead})


def at_best(ours: Sequence[Cell], control: Sequence[Cell], measure: str) -> Finding:
    """Whether the best of ours is better than the best of a control, at whatever rank each is."""
    best, rival = best_of(ours, measure), best_of(control, measure)
    if best is None or rival is None:
        return Finding(OPEN, best, {})
    lead = _lead(best, rival, measure)
    return Finding(_verdict(lead), best, {rival.name: lead})


def controls(rows: Iterable[dict[str, Any]], steps: int) -> dict[str, list[Cell]]:
    """The settings of each control of :data:`CONTROLS` at a stop; the last of each is the plain network."""
    rows = list(rows)
    cells = cells_at(rows, steps)
    plain = [cell for cell in cells if cell.family == "plain"]
    families = {name: [cell for cell in cells if cell.family == name] + plain for name in CONTROLS}
    return families | {"stopped": time_line(rows, steps)}


def depth_lines(cells: Iterable[Cell], family: str = "ours") -> dict[str, list[Cell]]:
    """Settings of a family that differ in the number of layers alone, from the fewest layers on."""
    lines: dict[str, list[Cell]] = {}
    for cell in sorted(
        (cell for cell in cells if cell.family == family), key=lambda cell: (cell.gain or 0, cell.depth)
    ):
        lines.setdefault(FAMILIES[family][0] + (f", gain {cell.gain:g}" if cell.gain else ""), []).append(cell)
    return {name: line for name, line in lines.items() if len(line) > 1}


def change(line: Iterable[Cell]) -> float:
    """Largest mean effective rank over the smallest."""
    means = [cell.mean("rank/effective") for cell in line]
    return max(means) / min(means) if min(means) > 0 else inf


def deepest_over_shallowest(line: Sequence[Cell]) -> tuple[float, float]:
    """Ratio of effective ranks, seed by seed: mean, and half the width of its 95 % interval."""
    shallow, deep = (cell.values("rank/effective") for cell in (line[0], line[-1]))
    return interval([rank / shallow[seed] if shallow[seed] else inf for seed, rank in deep.items() if seed in shallow])


def together(verdicts: Iterable[str]) -> str:
    """Of several measures of one purpose: they agree, or nothing is shown."""
    found = set(verdicts)
    return found.pop() if len(found) == 1 else OPEN


def best_of(cells: Sequence[Cell], measure: str) -> Cell | None:
    """By the mean over seeds."""
    cells = [cell for cell in cells if cell.values(measure)]
    return max(cells, key=lambda cell: sign(measure) * cell.mean(measure), default=None)


def _lead(cell: Cell, other: Cell, measure: str) -> tuple[float, float]:
    both = cell.values(measure).keys() & other.values(measure).keys()
    return cell.lead(other, measure) if len(both) >= MIN_SEEDS else (nan, nan)


def _verdict(lead: tuple[float, float]) -> str:
    return HOLDS if _clear(lead) else AGAINST if _clear((-lead[0], lead[1])) else OPEN


def _clear(lead: tuple[float, float]) -> bool:
    """Whether the whole interval is above zero."""
    return lead[0] > lead[1]


def _interpolated(points: Sequence[tuple[float, float]], x: float) -> float | None:
    for (left, low), (right, high) in pairwise(points):
        if left <= x <= right:
            share = 0.5 if left == right else log(x / left) / log(right / left)
            return low + share * (high - low)
    return None
