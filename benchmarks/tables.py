"""Rows of measurements: selected, grouped, summed up, as Markdown and as CSV."""

import csv
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

Row = dict[str, Any]
Rows = Sequence[Row]


def where(rows: Iterable[Row], **having: object) -> list[Row]:
    """The rows that have these values."""
    return [row for row in rows if all(row[key] == value for key, value in having.items())]


def values(rows: Iterable[Row], key: str, **having: object) -> list[Any]:
    """What the rows, or those that have some values, have at a key."""
    return [row[key] for row in where(rows, **having)]


def different(rows: Iterable[Row], *keys: str) -> list[Any]:
    """What rows have at a key, or at several, each once and in order."""
    return list(dict.fromkeys(row[keys[0]] if len(keys) == 1 else tuple(row[key] for key in keys) for row in rows))


def spread(numbers: Sequence[float]) -> str:
    """The median, and the smallest and largest number where they differ."""
    middle, low, high = (f"{number:.3g}" for number in (median(numbers), min(numbers), max(numbers)))
    return middle if low == high else f"{middle} ({low} to {high})"


def ends(numbers: Sequence[float], digits: str = ".3f") -> str:
    """The smallest and the largest number."""
    return f"{min(numbers):{digits}} to {max(numbers):{digits}}"


def share(rows: Rows, test: Callable[[Row], object]) -> str:
    """How many of the rows pass a test."""
    return f"{sum(map(bool, map(test, rows)))} of {len(rows)}"


def markdown(rows: Rows) -> str:
    """A Markdown table of rows with the same keys, the numbers to three digits; of no rows a line that says so."""
    if not rows:
        return "There is none of this."
    lines = [list(rows[0]), ["---"] * len(rows[0]), *([_shown(value) for value in row.values()] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def summary(rows: Rows, by: Mapping[str, str], columns: Mapping[str, str | Callable[[list[Row]], object]]) -> str:
    """A Markdown table with a line for each group of rows that agree in some keys.

    Args:
        rows: To be grouped.
        by: Titles of the keys.
        columns: By title, what is shown of a group: a function of it, or the :func:`spread` at a key.
    """
    lines = []
    for group in dict.fromkeys(tuple(row[key] for key in by) for row in rows):
        some = where(rows, **dict(zip(by, group, strict=True)))
        line = dict(zip(by.values(), group, strict=True))
        lines.append(
            line
            | {
                title: spread(values(some, shown)) if isinstance(shown, str) else shown(some)
                for title, shown in columns.items()
            }
        )
    return markdown(lines)


def write_csv(path: Path, rows: Rows) -> None:
    """Write rows with the same keys, the numbers to four digits."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]) if rows else [])
        writer.writeheader()
        writer.writerows({key: _shown(value, 4) for key, value in row.items()} for row in rows)


def read_csv(path: Path) -> list[Row]:
    """The rows that :func:`write_csv` wrote, numbers as numbers."""
    with path.open(newline="") as file:
        return [{key: _read(text) for key, text in row.items()} for row in csv.DictReader(file)]


def _read(text: str) -> Any:
    if text in ("None", "True", "False"):
        return {"None": None, "True": True, "False": False}[text]
    for number in (int, float):
        try:
            return number(text)
        except ValueError:
            pass
    return text


def _shown(value: object, digits: int = 3) -> str:
    return f"{value:.{digits}g}" if isinstance(value, float) else str(value)
