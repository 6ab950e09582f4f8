"""What came out on real images: tables, a picture, and verdicts by fixed rules."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf, nan

import study
from cells import FAMILIES, Cell, interval, lead_text, shown, sign, table
from tables import markdown

#: What is compared, and its name in the tables.
MEASURES = {
    "rank/numerical": "rank",
    "rank/effective": "effective rank",
    "test/error": "test error",
    "probe/all": "probe, all labels",
    "probe/100": "probe, 100 a class",
    "probe/10": "probe, 10 a class",
    "frechet/classifier/gaussian": "samples, Gaussian",
    "frechet/classifier/mixture": "samples, mixture",
}
CLASSIFICATION = [measure for measure in MEASURES if measure.startswith("probe")]
SAMPLING = [measure for measure in MEASURES if measure.startswith("frechet")]
#: Those that a best rank of ours must be better than.
CONTROLS = list(FAMILIES)[2:]
#: Factors that the rank may change by over the depths for it to "hold", and to "hold within limits".
HOLDS, WITHIN_LIMITS = 1.1, 1.5


@dataclass(frozen=True)
class Optimum:
    """The best setting on a line from low rank to high, by one measure.

    Attributes:
        measure: Key of :data:`MEASURES`.
        best: The setting.
        leads: Over its rivals; ``None`` where it is the rival.
        end_leads: Of the better end of the line over the best setting between the ends.
    """

    measure: str
    best: Cell
    leads: dict[str, tuple[float, float] | None]
    end_leads: tuple[float, float]

    @property
    def stands_out(self) -> bool:
        """Whether it is better than each rival with an interval that excludes zero."""
        return all(lead is not None and lead[0] > lead[1] for lead in self.leads.values())

    @property
    def end_stands_out(self) -> bool:
        """Whether an end is better than all between the ends, with an interval that excludes zero."""
        return self.end_leads[0] > self.end_leads[1]


def optimum(measure: str, line: Sequence[Cell], controls: Sequence[Cell]) -> Optimum:
    """The best of a line of settings; its rivals are the ends of the line and the best of each control."""

    def best(of: Sequence[Cell]) -> Cell:
        return max(of, key=lambda cell: sign(measure) * cell.mean(measure))

    line = [cell for cell in line if cell.values(measure)]
    ends, inner, top = [line[0], line[-1]], line[1:-1], best(line)
    rivals = {"lowest rank": line[0], "highest rank": line[-1]}
    for family in CONTROLS:
        some = [cell for cell in controls if cell.family == family and cell.values(measure)]
        if some:
            rivals[FAMILIES[family][0]] = best(some)
    leads = {name: None if cell is top else top.lead(cell, measure) for name, cell in rivals.items()}
    return Optimum(measure, top, leads, best(ends).lead(best(inner), measure) if inner else (nan, nan))


def depth_line(cells: Sequence[Cell], depth: int) -> list[Cell]:
    """From the smallest gain at one depth to no linear layers: from the lowest rank to the highest."""
    ours = [cell for cell in cells if cell.family == "ours" and cell.depth == depth]
    return [*sorted(ours, key=lambda cell: cell.gain or 0), *(cell for cell in cells if cell.family == "plain")]


def by_depth(cells: Sequence[Cell], family: str, gain: float | None) -> list[Cell]:
    """The same setting at all depths."""
    return sorted((c for c in cells if (c.family, c.gain) == (family, gain)), key=lambda cell: cell.depth)


def change(cells: Sequence[Cell]) -> float:
    """Largest mean effective rank over the smallest."""
    means = [cell.mean("rank/effective") for cell in cells]
    return max(means) / min(means) if min(means) > 0 else inf


def deepest_over_shallowest(cells: Sequence[Cell]) -> tuple[float, float]:
    """Ratio of effective ranks, seed by seed: mean, and half the width of its 95 % interval."""
    shallow, deep = (cell.values("rank/effective") for cell in (cells[0], cells[-1]))
    return interval([rank / shallow[seed] if shallow[seed] else inf for seed, rank in deep.items() if seed in shallow])


def gains(cells: Sequence[Cell]) -> list[float]:
    """Those of ours that were run at more than one depth."""
    found = sorted({cell.gain for cell in cells if cell.family == "ours" and cell.gain is not None})
    return [gain for gain in found if len(by_depth(cells, "ours", gain)) > 1]


def depth_table(cells: Sequence[Cell]) -> str:
    """Numerical and effective rank by depth."""
    rows = []
    lines = {"IRMAE style": ("irmae", None)} | {f"ours, gain {gain:g}": ("ours", gain) for gain in gains(cells)}
    depths = sorted({cell.depth for cell in cells if cell.family == "ours"})
    for label, key in lines.items():
        some = by_depth(cells, *key)
        if some:
            at = {cell.depth: f"{shown(cell, 'rank/numerical')}; {shown(cell, 'rank/effective')}" for cell in some}
            mean, half = deepest_over_shallowest(some)
            row = {"numerical; effective rank": label} | {f"{depth} layers": at.get(depth, "-") for depth in depths}
            row["largest / smallest effective"] = change(some)
            rows.append(row | {f"{depths[-1]} over {depths[0]} layers, by seed": f"{mean:.3g} ± {half:.2g}"})
    return markdown(rows)


def depth_verdict(cells: Sequence[Cell], longer: Sequence[Cell]) -> str:
    """Whether the rank depends on the depth."""
    ours, later = ({gain: by_depth(some, "ours", gain) for gain in gains(some)} for some in (cells, longer))
    worst = max(change(some) for some in (*ours.values(), *later.values()))
    found = study.judged(worst <= HOLDS, worst <= WITHIN_LIMITS).replace("not hold", "not hold here")
    changes, after = (
        ", ".join(f"{change(some):.2f} at gain {gain:g}" for gain, some in lines.items()) for lines in (ours, later)
    )
    reach = max(sum(deepest_over_shallowest(some)) for some in ours.values())
    return (
        f"**The rank does not depend on the depth: {found}.** Over the depths the mean effective rank of ours "
        f"changes by a factor of {changes}; trained longer, {after}; IRMAE style by "
        f"{change(by_depth(cells, 'irmae', None)):.3g}. (Holds: {HOLDS} at most; within limits: {WITHIN_LIMITS}. Of "
        f"means, that is: the intervals of ours reach up to {reach:.2f}.)"
    )


def growth(cells: Sequence[Cell], longer: Sequence[Cell]) -> str:
    """How the rank changes when the same settings are trained longer."""
    before = {cell.name: cell.mean("rank/effective") for cell in cells if cell.values("rank/effective")}
    pairs = {cell.name: (before[cell.name], cell.mean("rank/effective")) for cell in longer if cell.name in before}
    grown = sum(later > sooner for sooner, later in pairs.values())
    ranks = ", ".join(f"{sooner:.3g} to {later:.3g} ({name})" for name, (sooner, later) in pairs.items())
    return f"**Trained longer, the mean effective rank grows** in {grown} of {len(pairs)} settings: from {ranks}."


def optimum_verdict(purpose: str, found: Sequence[Optimum], longer: Sequence[Optimum]) -> str:
    """Whether a rank is best for a purpose, by some measures; the same ones after longer training."""
    pairs = list(zip(found, longer, strict=True))
    claims = [now.stands_out and later.stands_out and now.best.name == later.best.name for now, later in pairs]
    against = sum(now.end_stands_out for now in found)
    # A few of several measures could be chance.
    verdict = "holds" if all(claims) else "does not hold here" if against == len(found) else "not shown"
    bests = "; ".join(
        f"{MEASURES[now.measure]}: {now.best.name}, rank {shown(now.best, 'rank/numerical')}, and trained longer "
        f"{later.best.name}, rank {shown(later.best, 'rank/numerical')}"
        for now, later in pairs
    )
    return (
        f"**A rank that is best for {purpose}: {verdict}.** A setting between the ends stands out by {sum(claims)} of "
        f"{len(found)} measures; an end is better than all between by {against}. Best by mean over seeds: {bests}."
    )


def optima_table(found: Sequence[Optimum]) -> str:
    """For each measure the best setting and its leads."""

    def told(one: Optimum, name: str) -> str:
        lead = one.leads.get(name, (nan, nan))
        return "is it" if lead is None else lead_text(lead) if name in one.leads else "not measured"

    rivals = dict.fromkeys(name for one in found for name in one.leads)
    rows = []
    for one in found:
        row = {"measure": MEASURES[one.measure], "best": one.best.name, "its rank": shown(one.best, "rank/numerical")}
        row |= {f"over {name}": told(one, name) for name in rivals}
        row["stands out"] = "yes" if one.stands_out else "no"
        end = f"{lead_text(one.end_leads)}{', yes' if one.end_stands_out else ''}"
        rows.append(row | {"better end over the best between": end})
    return markdown(rows)


def optima(
    measures: Sequence[str], depth: int, cells: Sequence[Cell], longer: Sequence[Cell]
) -> tuple[list[Optimum], list[Optimum]]:
    """The best of ours at one depth by each measure that there is, and that of those trained longer."""
    line, later = (depth_line(some, depth) for some in (cells, longer))
    probed = [measure for measure in measures if any(cell.values(measure) for cell in cells)]
    return [optimum(m, line, cells) for m in probed], [optimum(m, later, []) for m in probed]


def verdict_of(depth: int, cells: Sequence[Cell], longer: Sequence[Cell]) -> str:
    """All that is claimed."""
    return "\n\n".join(
        [
            depth_verdict(cells, longer),
            growth(cells, longer),
            optimum_verdict("classification", *optima(CLASSIFICATION, depth, cells, longer)),
            optimum_verdict("sampling", *optima(SAMPLING, depth, cells, longer)),
        ]
    )


def evidence(depth: int, epochs: int, cells: Sequence[Cell], longer: Sequence[Cell]) -> str:
    """The tables that it rests on; ``epochs`` are those of what is trained longer."""
    found, later = optima([*CLASSIFICATION, *SAMPLING], depth, cells, longer)
    rule = f"""From the smallest gain at {depth} layers over the larger ones to the plain network is a line from
low rank to high. For each measure the best on it, and its lead over the line's ends and over the best of each control,
seed by seed (positive is better). It stands out if all these intervals are above zero. A rank is called best for a
purpose if settings between the ends stand out by all measures, and after {epochs} epochs the same ones do again,
from the ends; that there is one does not hold if by all measures an end leads all settings between, and is not shown
otherwise. With {max(len(cell.runs) for cell in cells)} seeds only large differences show; and the best of several is
chosen by the same runs, which favours it."""
    parts = ["## Does the rank depend on the depth?", depth_table(cells), f"After {epochs} epochs:"]
    parts += [depth_table(longer), "## Is there a best rank?", rule, optima_table(found), f"After {epochs} epochs:"]
    parts += [optima_table(later), "## All settings", table(cells, MEASURES), f"After {epochs} epochs:"]
    return "\n\n".join([*parts, table(longer, MEASURES)])
