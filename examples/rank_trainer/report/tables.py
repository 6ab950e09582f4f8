"""What came out of a sweep, as tables."""

import csv
import io
import math
from collections.abc import Sequence
from typing import Any

from scipy import stats

Results = Sequence[dict[str, Any]]

SETTINGS = ("method", "depth", "gain")
#: The columns of each table, by key of the results. The distance is not called FID unless it is one.
TABLES = {
    "Ranks and errors": {
        "rank/numerical": "numerical rank",
        "rank/effective": "effective rank",
        "rank/participation": "participation ratio",
        "val/loss": "validation error",
        "test/error": "test error",
        "seconds": "seconds",
    },
    "What the latents are good for": {
        "probe/all": "accuracy, all labels",
        "probe/100": "accuracy, 100 a class",
        "probe/10": "accuracy, 10 a class",
        "samples/rank": "rank of samples",
        "fid/inception/gaussian": "FID (Inception), Gaussian",
        "fid/inception/mixture": "FID (Inception), mixture",
        "frechet/classifier/gaussian": "Fréchet (classifier), Gaussian",
        "frechet/classifier/mixture": "Fréchet (classifier), mixture",
    },
}


def cells(results: Results, measures: dict[str, str]) -> list[list[str]]:
    """A header and a row for each method, depth and gain: the mean over seeds and its 95 % interval (Student's t).

    Measures that no run has are left out; there are no rows if that leaves none.
    """
    measures = {key: title for key, title in measures.items() if any(key in row for row in results)}
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in results:
        groups.setdefault(tuple(row[key] for key in SETTINGS), []).append(row)
    if not measures:
        return []
    rows = [[*SETTINGS, "seeds", *measures.values()]]
    for settings, runs in groups.items():
        values = [mean_and_interval([run[key] for run in runs if key in run]) for key in measures]
        rows.append([*("-" if value is None else str(value) for value in settings), str(len(runs)), *values])
    return rows


def mean_and_interval(values: Sequence[float]) -> str:
    """``mean ± half-width`` of the 95 % interval of the mean over seeds; of one seed, its value."""
    if not values:
        return "-"
    mean, half = interval(values)
    return f"{mean:.3g}" if math.isnan(half) else f"{mean:.3g} ± {half:.2g}"


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean, and half the width of its 95 % interval (Student's t); NaN of one value."""
    mean = math.fsum(values) / len(values)
    if len(values) == 1:
        return mean, math.nan
    return mean, float(stats.t.ppf(0.975, len(values) - 1) * stats.sem(values))


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, aligned for those who read it as text."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "| " + " | ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    ]
    rule = "|" + "|".join("-" * (width + 1) + ":" for width in widths) + "|"
    return "\n".join([lines[0], rule, *lines[1:]])


def csv_text(results: Results) -> str:
    """The results as CSV, a row a run."""
    keys = list(dict.fromkeys(key for row in results for key in row if key not in ("history", "singular_values")))
    file = io.StringIO(newline="")
    writer = csv.DictWriter(file, keys, extrasaction="ignore", restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(results)
    return file.getvalue()
