"""The report on autoencoders trained to convergence, from the rows that were measured."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import converged_verdicts as verdicts
import report
from cells import FAMILIES, Cell, finish, shown
from converged_measures import CUTS
from converged_verdicts import CONTROLS, HOLDS, JUDGED, MEASURES, MIN_SEEDS, Finding
from matplotlib.figure import Figure

Rows = Sequence[dict[str, Any]]

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
        f"{missing} {times(rows, steps)}",
        RULE,
        f"## Verdicts at {steps:,} steps",
        purposes(rows, steps),
    ]
    parts += ["## A best rank", best_ranks(rows, steps)]
    parts += ["The same with longer and shorter training, for ours over gains and for widths:", over_stops(rows, stops)]
    parts += ["## Ours against the controls", "At equal rank, or error:", equal(rows, steps)]
    parts += ["Best against best, at whatever rank:", at_best(rows, steps)]
    parts += ["Each gain, its lead over each control at equal rank, or error:", equal_by_gain(rows, steps)]
    parts += ["## One training, cut", CURVES, curves(rows, steps)]
    parts += ["## All settings", "![Every measure against the effective rank, a marker a run](against_rank.png)"]
    parts += ["![Every measure over the steps of training, means over seeds](over_steps.png)"]
    for stop in stops[::-1]:
        parts += [f"After {stop:,} steps:", table(verdicts.cells_at(rows, stop))]
    parts += ["The plain network as it trains:", table(verdicts.time_line(rows, max(row["steps"] for row in rows)))]
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


def times(rows: Rows, steps: int) -> str:
    """How long a run took."""
    taken = [row["train/seconds"] / 60 for row in rows if row["steps"] == steps and row["family"] != "truncated"]
    return (
        f"Training to {steps:,} steps took {report.spread(taken)} minutes a run by the clock, in processes of one "
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
    lines = lines_at(rows, steps)
    header = ["", *(f"best rank, {name}" for name in lines), *(f"ours over {name}" for name in CONTROL_NAMES.values())]
    table_rows = []
    for purpose, prefix in PURPOSES.items():
        measures = [measure for measure in JUDGED if measure.startswith(prefix)]
        found = [[verdicts.best_rank(line, measure) for measure in measures] for line in lines.values()]
        found += [[_equal(rows, steps, name, measure) for measure in measures] for name in CONTROL_NAMES]
        table_rows.append([purpose, *(verdicts.together(one.verdict for one in some) for some in found)])
    return report.markdown(header, table_rows)


def best_ranks(rows: Rows, steps: int) -> str:
    """A row a measure and line: the best between the ends, its rank, and its leads over the ends."""
    made = []
    for measure in JUDGED:
        for name, line in lines_at(rows, steps).items():
            found = verdicts.best_rank(line, measure)
            if found.best:
                leads = "; ".join(f"{lead_text(lead)} over {end}" for end, lead in found.leads.items())
                best = f"{found.best.name}: {shown(found.best, measure)}"
                made.append([MEASURES[measure], name, best, shown(found.best, "rank/effective"), leads, found.verdict])
    return report.markdown(["measure", "line", "best between the ends", "its effective rank", "leads", "verdict"], made)


def over_stops(rows: Rows, stops: Sequence[int]) -> str:
    """The verdicts on a best rank at each stop, of the gains and of the widths."""
    lines = {stop: verdicts.cells_at(rows, stop) for stop in stops}
    made = [
        [MEASURES[measure]]
        + [
            _short(verdicts.best_rank(line(cells), measure))
            for line in (verdicts.gain_line, verdicts.width_line)
            for cells in lines.values()
        ]
        for measure in JUDGED
    ]
    return report.markdown(["measure", *(f"{name}, {stop:,}" for name in ("gains", "widths") for stop in stops)], made)


def equal(rows: Rows, steps: int) -> str:
    """A row a measure: the best of ours, and its lead over each control."""
    made = []
    for measure in JUDGED:
        best = verdicts.best_of(_ours(rows, steps), measure)
        if best:
            found = [_equal(rows, steps, name, measure) for name in CONTROL_NAMES]
            leads = [f"{lead_text(one.leads[''])}: {one.verdict}" for one in found]
            made.append([MEASURES[measure], f"{best.name}: {shown(best, measure)}", *leads])
    return report.markdown(["measure", "best of ours", *CONTROL_NAMES.values()], made)


def at_best(rows: Rows, steps: int) -> str:
    """A row a measure: the lead of the best of ours over the best of each control."""
    others = verdicts.controls(rows, steps)
    made = []
    for measure in JUDGED:
        row = []
        for name in CONTROL_NAMES:
            found = verdicts.at_best(_ours(rows, steps), others[name][:-1], measure)  # without the plain network
            row += [f"{lead_text(lead)} over {rival}: {found.verdict}" for rival, lead in found.leads.items()] or ["-"]
        made.append([MEASURES[measure], *row])
    return report.markdown(
        ["measure", *(name.split(" at equal")[0].rstrip(",") for name in CONTROL_NAMES.values())], made
    )


def equal_by_gain(rows: Rows, steps: int) -> str:
    """A row a gain and control, a column a measure."""
    others = verdicts.controls(rows, steps)
    made = [
        [cell.name, CONTROL_NAMES[name]]
        + [lead_text(verdicts.at_equal(cell, others[name], measure, x).leads[""]) for measure in JUDGED]
        for cell in _ours(rows, steps)
        for name, x in CONTROLS.items()
    ]
    return report.markdown(["ours", "over", *(MEASURES[measure] for measure in JUDGED)], made)


def curves(rows: Rows, steps: int) -> str:
    """A row a setting of full width, a column a rank."""
    cells = verdicts.cells_at(rows, steps)
    widths = {row["width"]: cell for cell in cells if cell.family == "narrow" for row in cell.runs.values()}
    ranks = sorted(widths)
    made = [
        [cell.name, *(shown(cell, f"cut/{rank}/error") for rank in ranks), shown(cell, "test/error")]
        for cell in cells
        if any(f"cut/{max(CUTS)}/error" in row for row in cell.runs.values())
    ]
    made.append(["plain, trained at that width", *(shown(widths[rank], "test/error") for rank in ranks), "-"])
    return report.markdown(["", *(f"{rank} directions" for rank in ranks), "all"], made)


def table(cells: Sequence[Cell]) -> str:
    """A row a setting: means over seeds and 95 % intervals."""
    rows = [[cell.name, len(cell.runs), *(shown(cell, measure) for measure in MEASURES)] for cell in cells]
    return report.markdown(["", "seeds", *MEASURES.values()], rows)


def draw_over_steps(rows: Rows, path: Path) -> None:
    """Every measure over the steps of training: means over the seeds of each setting."""
    over: dict[str, list[tuple[int, Cell]]] = {}
    for stop in sorted({row["steps"] for row in rows}):
        for cell in verdicts.cells_at(rows, stop):
            over.setdefault(cell.name, []).append((stop, cell))
    measures, ticks = ["rank/effective", *JUDGED], verdicts.stops_of(rows)
    figure = Figure(figsize=(12, 3.2 * -(-len(measures) // 4)), dpi=100, layout="constrained")
    axes = figure.subplots(-(-len(measures) // 4), 4, squeeze=False).flatten()
    for axis, measure in zip(axes, measures, strict=False):
        for name, cells in over.items():
            points = [(stop, cell.mean(measure)) for stop, cell in cells if cell.values(measure)]
            axis.plot(*zip(*points, strict=True), marker="o", markersize=3, label=name) if points else None
        axis.set(xlabel="steps", ylabel=MEASURES[measure], xscale="log")
        axis.set_xticks(ticks, [f"{stop:,}" for stop in ticks], fontsize=7)
        axis.minorticks_off()
        finish(axis, measure)
    for axis in axes[len(measures) :]:
        axis.set_axis_off()
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
    figure.savefig(path)


def lead_text(lead: tuple[float, float]) -> str:
    """Mean and half-width; a dash where too few seeds have both."""
    return "-" if lead[0] != lead[0] else f"{lead[0]:+.2g} ± {lead[1]:.2g}"


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
