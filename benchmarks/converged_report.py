"""The report on autoencoders trained to convergence, from the rows that were measured."""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import converged_verdicts as verdicts
import study
import torch
from cells import FAMILIES, Cell, grid, lead_text, shown, table
from converged_measures import CUTS
from converged_verdicts import CONTROLS, HOLDS, JUDGED, MEASURES, MIN_SEEDS, Finding
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator
from tables import Rows, markdown, spread

from lightning_rank.functional import numerical_rank

#: Measures of one purpose, that a verdict on it wants to agree.
PURPOSES = {
    "classification with 10 labels a class": "probe/10/",
    "classification with 100 labels a class": "probe/100/",
    "classification with all labels": "probe/all/",
    "sampling": "frechet/",
    "reconstruction": "test/",
}
CONTROL_NAMES = {"stopped": "plain, stopped early at equal error"} | {
    family: f"{FAMILIES[family][0]}, at equal rank" for family in CONTROLS if family != "stopped"
}


def body(rows: Rows, steps: int, settings: str, missing: str) -> str:
    """Everything but the title and the environment.

    Args:
        rows: As measured.
        steps: The stop that most is said about.
        settings: What was run.
        missing: What was not, yet.
    """
    stops = verdicts.stops_of(rows)
    parts = [
        settings,
        f"{missing} {times(rows, steps)}".strip(),
        RULE,
        f"## Verdicts at {steps:,} steps",
        purposes(rows, steps),
    ]
    parts += ["## A best rank", best_ranks(rows, steps)]
    parts += ["The same with longer and shorter training, for ours over gains and for widths:", over_stops(rows, stops)]
    parts += ["## Ours against the controls", "At equal rank, or error:", equal(rows, steps)]
    parts += ["Best against best, at whatever rank:", at_best(rows, steps)]
    parts += ["Each gain, its lead over each control at equal rank, or error:", equal_by_gain(rows, steps)]
    parts += ["## Does the rank depend on the depth, and on the training?", depth_verdict(rows, steps)]
    parts += [growth(rows, steps), "Effective rank over depths:", depth_table(rows, stops)]
    parts += ["## One training, cut", CURVES, curves(rows, steps), THRESHOLDS, thresholds(rows)]
    parts += ["## All settings", "![Every measure against the effective rank, a marker a run](against_rank.png)"]
    parts += ["![Every measure over the steps of training, means over seeds](over_steps.png)"]
    for stop in stops[::-1]:
        parts += [f"After {stop:,} steps:", table(verdicts.cells_at(rows, stop), MEASURES)]
    parts += [
        "The plain network as it trains:",
        table(verdicts.time_line(rows, max(row["steps"] for row in rows)), MEASURES),
    ]
    return "\n\n".join(parts)


RULE = f"""Rules, fixed before results were looked at. A *best rank*: on a line of settings (ours at {verdicts.DEPTH}
layers over gains, with the plain network; plain networks over widths; the plain network over its stops) the best
setting between the ends, by the mean over seeds, leads each end; the ends are the settings of lowest and of highest
mean effective rank, and on the line of gains the plain network too. It does not hold if an end leads all settings
between. *At equal rank*: the control is interpolated seed by seed, linearly in the logarithm of the effective rank, to
that of ours; at equal error, of the validation error to that of ours; a seed where it does not reach ours on both sides
is left out; ours is the setting at {verdicts.DEPTH} layers that is best by the measure. *Best against best*: at
whatever rank each is. Both hold if ours leads, and do not hold if the control does. Every lead is paired by seed, and
counts if its 95 % interval excludes zero; from fewer than {MIN_SEEDS} seeds nothing is shown. A purpose with several
measures wants them to agree. The best of several settings is chosen by the same runs, which favours it; nothing
corrects for the number of measures."""


CURVES = """Test error with the latents of a trained network cut to their leading directions, no training after, and
in the last line that of plain networks trained at each width. The closer a line is to the last, the better the rank can
be chosen after one training."""


THRESHOLDS = """The same cut to the rank that a threshold of the numerical rank names, of all trainings and stops: test
error over that of the whole latents, less one, between the cuts interpolated linearly in the logarithm of the rank."""


def times(rows: Rows, steps: int) -> str:
    """How long a run took."""
    taken = [row["train/seconds"] / 60 for row in rows if row["steps"] == steps and "train/seconds" in row]
    if not taken:
        return ""
    return (
        f"Training to {steps:,} steps took {spread(taken)} minutes a run by the clock, in processes of one "
        "thread and of the lowest priority, beside other programs and paused at times."
    )


def lines_at(rows: Rows, steps: int) -> dict[str, list[Cell]]:
    """The lines on which a best rank is looked for."""
    cells = verdicts.cells_at(rows, steps)
    return {
        "ours over gains": verdicts.gain_line(cells),
        "plain over widths": verdicts.width_line(cells),
        "plain over steps": verdicts.time_line(rows, steps),
    }


def purposes(rows: Rows, steps: int) -> str:
    """A row a purpose, a column a claim."""
    claims = {f"best rank, {name}": partial(verdicts.best_rank, line) for name, line in lines_at(rows, steps).items()}
    claims |= {f"ours over {title}": partial(_equal, rows, steps, name) for name, title in CONTROL_NAMES.items()}
    made = []
    for purpose, prefix in PURPOSES.items():
        measures = [measure for measure in JUDGED if measure.startswith(prefix)]
        found = {claim: verdicts.together(judge(m).verdict for m in measures) for claim, judge in claims.items()}
        made.append({"": purpose, **found})
    return markdown(made)


def best_ranks(rows: Rows, steps: int) -> str:
    """A row a measure and line: the best between the ends, its rank, and its leads over the ends."""
    made = []
    for measure in JUDGED:
        for name, line in lines_at(rows, steps).items():
            found = verdicts.best_rank(line, measure)
            if found.best:
                row = {"measure": MEASURES[measure], "line": name}
                row["best between the ends"] = f"{found.best.name}: {shown(found.best, measure)}"
                row["its effective rank"] = shown(found.best, "rank/effective")
                row["leads"] = "; ".join(f"{lead_text(lead)} over {end}" for end, lead in found.leads.items())
                made.append(row | {"verdict": found.verdict})
    return markdown(made)


def over_stops(rows: Rows, stops: Sequence[int]) -> str:
    """The verdicts on a best rank at each stop, of the gains and of the widths."""
    lines = {
        f"{name}, {stop:,}": line(verdicts.cells_at(rows, stop))
        for name, line in (("gains", verdicts.gain_line), ("widths", verdicts.width_line))
        for stop in stops
    }
    return markdown(
        [
            {"measure": MEASURES[measure]}
            | {name: _short(verdicts.best_rank(line, measure)) for name, line in lines.items()}
            for measure in JUDGED
        ]
    )


def equal(rows: Rows, steps: int) -> str:
    """A row a measure: the best of ours, and its lead over each control."""
    made = []
    for measure in JUDGED:
        best = verdicts.best_of(_ours(rows, steps), measure)
        found = {title: _equal(rows, steps, name, measure) for name, title in CONTROL_NAMES.items()}
        if best:
            row = {"measure": MEASURES[measure], "best of ours": f"{best.name}: {shown(best, measure)}"}
            made.append(row | {title: f"{lead_text(one.leads[''])}: {one.verdict}" for title, one in found.items()})
    return markdown(made)


def at_best(rows: Rows, steps: int) -> str:
    """A row a measure: the lead of the best of ours over the best of each control."""
    others = verdicts.controls(rows, steps)
    made = []
    for measure in JUDGED:
        row = {"measure": MEASURES[measure]}
        for name, title in CONTROL_NAMES.items():
            found = verdicts.at_best(_ours(rows, steps), others[name][:-1], measure)  # without the plain network
            told = [f"{lead_text(lead)} over {rival}: {found.verdict}" for rival, lead in found.leads.items()]
            row[title.split(" at equal")[0].rstrip(",")] = told[0] if told else "-"
        made.append(row)
    return markdown(made)


def equal_by_gain(rows: Rows, steps: int) -> str:
    """A row a gain and control, a column a measure."""
    others = verdicts.controls(rows, steps)
    made = [
        {"ours": cell.name, "over": CONTROL_NAMES[name]}
        | {MEASURES[m]: lead_text(verdicts.at_equal(cell, others[name], m, x).leads[""]) for m in JUDGED}
        for cell in _ours(rows, steps)
        for name, x in CONTROLS.items()
    ]
    return markdown(made)


def depth_verdict(rows: Rows, steps: int) -> str:
    """Whether the rank of ours depends on the number of layers, and that of IRMAE."""
    ours, irmae = (verdicts.depth_lines(verdicts.cells_at(rows, steps), family) for family in ("ours", "irmae"))
    if not ours:
        return "Of the depth nothing is said: there is one depth of ours."
    worst = max(map(verdicts.change, ours.values()))
    judged = study.judged(worst <= verdicts.DEPTH_HOLDS, worst <= verdicts.DEPTH_WITHIN_LIMITS)
    told = ", ".join(f"{verdicts.change(line):.2f} ({name})" for name, line in (ours | irmae).items())
    reaches = [sum(verdicts.deepest_over_shallowest(line)) for line in ours.values()]
    reach = max((ratio for ratio in reaches if not math.isnan(ratio)), default=math.nan)  # NaN: of one seed
    return f"""**The rank does not depend on the depth: {judged}.** Over the depths the mean effective rank after
{steps:,} steps changes by a factor of {told}. (Holds: {verdicts.DEPTH_HOLDS} at most; within limits:
{verdicts.DEPTH_WITHIN_LIMITS}. Of means, that is: seed by seed the deepest of ours has up to {reach:.2f} times the rank
of the shallowest, with the interval.)"""


def growth(rows: Rows, steps: int) -> str:
    """How the rank changes while training goes on."""
    first = verdicts.stops_of(rows)[0]
    before, after = (
        {c.name: c.mean("rank/effective") for c in verdicts.cells_at(rows, at) if c.values("rank/effective")}
        for at in (first, steps)
    )
    pairs = {name: (before[name], rank) for name, rank in after.items() if name in before}
    grown = sum(later > sooner for sooner, later in pairs.values())
    told = ", ".join(f"{sooner:.3g} to {later:.3g} ({name})" for name, (sooner, later) in pairs.items())
    return f"""**While training goes on the mean effective rank grows** in {grown} of {len(pairs)} settings, from
{first:,} to {steps:,} steps: {told}."""


def depth_table(rows: Rows, stops: Sequence[int]) -> str:
    """A row a line of depths and stop, a column a depth."""
    made = []
    for stop in stops:
        cells = verdicts.cells_at(rows, stop)
        for name, line in (verdicts.depth_lines(cells) | verdicts.depth_lines(cells, "irmae")).items():
            ranks = {cell.depth: shown(cell, "rank/effective") for cell in line}
            mean, half = verdicts.deepest_over_shallowest(line)
            made.append({"": name, "steps": f"{stop:,}"} | {f"{n} layers": ranks.get(n, "-") for n in (2, 4, 8)})
            made[-1] |= {
                "largest / smallest": verdicts.change(line),
                "deepest / shallowest": f"{mean:.3g} ± {half:.2g}",
            }
    return markdown(made)


def curves(rows: Rows, steps: int) -> str:
    """A row a setting of full width, a column a rank."""
    cells = verdicts.cells_at(rows, steps)
    widths = {row["width"]: cell for cell in cells if cell.family == "narrow" for row in cell.runs.values()}
    made = [
        {"": cell.name, **{f"{rank} directions": shown(cell, f"cut/{rank}/error") for rank in sorted(widths)}}
        | {"all": shown(cell, "test/error")}
        for cell in cells
        if any(f"cut/{max(CUTS)}/error" in row for row in cell.runs.values())
    ]
    trained = {f"{rank} directions": shown(widths[rank], "test/error") for rank in sorted(widths)}
    return markdown([*made, {"": "plain, trained at that width", **trained, "all": "-"}])


def thresholds(rows: Rows) -> str:
    """A row a threshold of the variance: what a cut to the numerical rank costs."""
    measured = [row for row in rows if "cut/1/error" in row]
    made = []
    for variance_rtol in (3e-2, 1e-2, 1e-3, 1e-4):
        costs = torch.tensor([cost_of_cut(row, variance_rtol) for row in measured] or [math.nan])
        shares = {"median": 0.5, "nine of ten below": 0.9, "largest": 1.0}
        row = {"variance_rtol": variance_rtol, "trainings and stops": len(measured)}
        made.append(row | {name: costs.quantile(share).item() for name, share in shares.items()})
    return markdown(made)


def cost_of_cut(row: dict[str, Any], variance_rtol: float) -> float:
    """Relative increase of the test error when the latents are cut to their numerical rank."""
    spectrum = torch.tensor(row["spectrum"])
    rank = int(numerical_rank(spectrum, variance_rtol=variance_rtol))
    errors = {cut: row[f"cut/{cut}/error"] for cut in CUTS if cut < len(spectrum)} | {len(spectrum): row["test/error"]}
    low = max(cut for cut in errors if cut <= rank)
    high = min(cut for cut in errors if cut >= rank)
    share = 0.0 if low == high else math.log(rank / low) / math.log(high / low)
    return (errors[low] + share * (errors[high] - errors[low])) / row["test/error"] - 1


def draw_over_steps(rows: Rows) -> Figure:
    """Every measure over the steps of training: means over the seeds of each setting."""
    over: dict[str, list[tuple[int, Cell]]] = {}
    for stop in sorted({row["steps"] for row in rows}):
        for cell in verdicts.cells_at(rows, stop):
            over.setdefault(cell.name, []).append((stop, cell))
    figure, panels = grid(["rank/effective", *JUDGED], MEASURES, 4)
    ticks = verdicts.stops_of(rows)
    for measure, axis in panels.items():
        for name, cells in over.items():
            points = [(stop, cell.mean(measure)) for stop, cell in cells if cell.values(measure)]
            axis.plot(*zip(*points, strict=True), marker="o", markersize=3, label=name) if points else None
        axis.set(xlabel="steps", xscale="log")
        axis.set_xticks(ticks, [f"{stop:,}" for stop in ticks], fontsize=7)
        axis.xaxis.set_minor_locator(NullLocator())
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
    return figure


def _ours(rows: Rows, steps: int) -> list[Cell]:
    cells = verdicts.cells_at(rows, steps)
    return [cell for cell in cells if (cell.family, cell.depth) == ("ours", verdicts.DEPTH)]


def _equal(rows: Rows, steps: int, control: str, measure: str) -> Finding:
    best = verdicts.best_of(_ours(rows, steps), measure)
    if best is None:
        return Finding(verdicts.OPEN, None, {})
    return verdicts.at_equal(best, verdicts.controls(rows, steps)[control], measure, CONTROLS[control])


def _short(found: Finding) -> str:
    return f"{found.verdict} ({found.best.name})" if found.best and found.verdict == HOLDS else found.verdict
