"""Tables and verdicts in the README and in the documentation, taken from the committed reports.

What stands between ``<!-- table NAME -->`` or ``<!-- quote REPORT: BEGINNING OF A PARAGRAPH -->`` and ``<!-- end -->``
is written by ``python docs/excerpts.py``, so that no figure in a page can differ from the one in its report; a test
sees that there is nothing to write.
"""

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks/results"
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]

Row = dict[str, str]
GAINS = {f"gain {gain}": f"ours 4 layers, gain {gain}" for gain in ("0.03", "0.1", "0.3", "1")}
#: Report, and the stops that it has of all settings.
IMAGES = {"CIFAR-10": ("converged_cifar10", (2_000, 10_000)), "Fashion-MNIST": ("converged", (2_000, 10_000, 30_000))}
#: The last stop, which only some settings have.
LONGEST = {"CIFAR-10": 30_000, "Fashion-MNIST": 100_000}
CONVERGED = {
    "test error": "test error",
    "samples, Gaussian": "samples",
    "10 a class, standardized": "10 labels, standardized",
    "10 a class, as they are": "10 labels, as they are",
    "all labels, standardized": "all labels, standardized",
}
STEP = {"what": "training step", "dim": "128", "rows": "1024"}
# what, report, the text before its table, the row, the column
COSTS: list[tuple[str, str, str, Row, str]] = [
    (
        "a training step of 8 layers of width 128 on 1,024 rows, over the same layers in sequence",
        *("bottleneck", "", STEP | {"depth": "8"}, "ours / sequence"),
    ),
    ("the same of 16 layers", "bottleneck", "", STEP | {"depth": "16"}, "ours / sequence"),
    (
        "evaluation with the layers collapsed, over the 8 layers in sequence",
        *("bottleneck", "", STEP | {"what": "evaluation, collapsed", "depth": "8"}, "ours / sequence"),
    ),
    (
        "exact spectrum of 100,000 latents of width 128, over keeping them for an SVD in float32",
        *("monitor", "## 100000 x 128", {"way": "LatentSpectrum"}, "time / (all rows, svdvals)"),
    ),
    (
        "the monitor at work on a batch, over the forward pass of IRMAE's encoder for MNIST",
        *("monitor", "## Taking in a batch", {"threads": "1"}, "update / forward"),
    ),
    (
        "a whole training with bottleneck, `DepthScaledLR` and `EffectiveRankMonitor`, over one without",
        *("training_overhead", "", {"parts": "bottleneck, DepthScaledLR, EffectiveRankMonitor"}, "time / without"),
    ),
]


def written(page: Path) -> str:
    """The page with its tables and quotations as the reports have them now."""

    def fill(found: re.Match[str]) -> str:
        kind, what = found[2], found[3]
        text = _table(TABLES[what](page)) if kind == "table" else _quote(page, *what.split(": ", 1))
        return f"{found[1]}\n{text}\n<!-- end -->"

    return re.sub(r"(<!-- (table|quote) (.+?) -->)\n.*?<!-- end -->", fill, page.read_text(), flags=re.DOTALL)


def rows_of(report: str, after: str = "") -> Iterator[Row]:
    """The rows of a report's first table behind the text ``after``, by column; of two of one name the last."""
    text = (RESULTS / report / "README.md").read_text()
    lines = text[text.index(after) :].splitlines()
    start = next(k for k, line in enumerate(lines) if line.startswith("|"))
    names = _cells(lines[start])
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            return
        yield dict(zip(names, _cells(line), strict=True))


def _gains(page: Path) -> Iterable[Row]:
    """Effective rank and test error by gain, at four layers."""
    for data, (report, stops) in IMAGES.items():
        found = _settings(report, stops[-1])
        settings = {gain: found.get(name) for gain, name in GAINS.items()} | {"plain": found["plain"]}
        yield _rank_and_error(page, data, report, settings)
    report = "rank_sweep_digits"
    settings = {f"gain {float(row['gain']):g}": row for row in rows_of(report, "gains.csv")}
    settings["plain"] = next(row for row in rows_of(report) if row["method"] == "plain")
    yield _rank_and_error(page, "digits", report, settings)


def _settings(report: str, stop: int) -> dict[str, Row]:
    """The settings of a report of converged autoencoders at a stop, by name."""
    return {row[""]: row for row in rows_of(report, f"After {stop:,} steps:")}


def _rank_and_error(page: Path, data: str, report: str, settings: Mapping[str, Row | None]) -> Row:
    told = {
        name: f"{_mean(row['effective rank'])}; {_mean(row['test error'])}" if row else "-"
        for name, row in settings.items()
    }
    return {"effective rank; test error": _link(page, data, report)} | told


def _depths(page: Path) -> Iterable[Row]:
    """Effective rank over the depths."""
    for data, (report, stops) in IMAGES.items():
        for row in rows_of(report, "Effective rank over depths:"):
            if row["steps"] == f"{stops[-1]:,}":
                ranks = {name: _mean(row[name]) for name in ("2 layers", "4 layers", "8 layers")}
                factor = {"largest / smallest": row["largest / smallest"]}
                yield {"effective rank": f"{_link(page, data, report)}, {row['']}"} | ranks | factor


def _growth(page: Path) -> Iterable[Row]:
    """Effective rank at each stop."""
    names = GAINS | {"plain": "plain"}
    for data, (report, stops) in IMAGES.items():
        for stop in (*stops, LONGEST[data]):
            found = _settings(report, stop)
            ranks = {
                gain: _mean(found[name]["effective rank"]) if name in found else "-" for gain, name in names.items()
            }
            yield {"effective rank": f"{_link(page, data, report)}, after {stop:,} steps"} | ranks


def _converged(page: Path) -> Iterable[Row]:
    """What autoencoders trained to convergence are good for."""
    for row in rows_of("converged", "After 30,000 steps:"):
        if not row[""].startswith("plain, truncated"):
            told = ("effective rank", *CONVERGED)
            yield {"after 30,000 steps": row[""]} | {CONVERGED.get(name, name): _mean(row[name]) for name in told}


def _verdicts(page: Path) -> Iterable[Row]:
    """Whether there is a best rank, and what leads at equal rank."""
    return rows_of("converged", "## Verdicts")


def _verdicts_of_cifar10(page: Path) -> Iterable[Row]:
    """The same of the convolutional network."""
    return rows_of("converged_cifar10", "## Verdicts")


def _shrink(page: Path) -> Iterable[Row]:
    """Width, error and probe of digits' autoencoders, cut or not."""
    for row in rows_of("shrink_autoencoder"):
        yield {
            "": row["model"],
            "width of the latents": _mean(row["width of the latents"]),
            "test error": _mean(row["test error"]),
            "linear probe": _mean(row["accuracy of a linear probe"]),
        }


def _costs(page: Path) -> Iterable[Row]:
    """What parts cost, over another way to do the same."""
    for what, report, after, which, column in COSTS:
        rows = rows_of(report, after)
        row = next(row for row in rows if all(row[name] == value for name, value in which.items()))
        yield {"": what, "ratio": _link(page, _mean(row[column]), report)}


def _accuracy(page: Path) -> Iterable[Row]:
    """Relative errors of the effective rank."""
    ways = ["LatentSpectrum", "all rows, svdvals float32", "sums, float32", "queue of 2048, not centred"]
    for row in rows_of("monitor_accuracy"):
        yield {"latents": row["latents"]} | {way: row[way] for way in ways}


def _processes(page: Path) -> Iterable[Row]:
    """What it takes to sum over processes, one layer of width 1,024."""
    told = ("processes", "state, MiB", "now: peak above state, MiB", "sent by each, MiB", "now: sent by each, MiB")
    for row in rows_of("scale", "## Processes"):
        if row["dim"] == "1024":
            yield {name.removeprefix("now: "): row[name] for name in told if name in row}


def _positions(page: Path) -> Iterable[Row]:
    """Time of an update on a share of the rows."""
    for row in rows_of("scale", "## Positions"):
        yield {
            "`max_rows`": f"`{row['max_rows']}`",
            "rows that count": row["rows that count"],
            "time of an update, over that of all rows": _mean(row["over all rows"]),
        }


def _checkpoints(page: Path) -> Iterable[Row]:
    """What the curve adds to a checkpoint."""
    for row in rows_of("scale", "## Epochs"):
        yield {"epochs": row["epochs"], "in a checkpoint, MiB": row["now, MiB"]}


def _ways(page: Path) -> Iterable[Row]:
    """Ways to a spectrum."""
    names = {
        "way": "way",
        "time / (all rows, svdvals)": "time / that of all rows, svdvals",
        "latents or sums kept, MiB": "kept, MiB",
        "resolves, offset 100": "resolves",
    }
    for row in rows_of("monitor", "## 100000 x 128"):
        yield {name: row[column].split(" (")[0] for column, name in names.items()}


TABLES: dict[str, Callable[[Path], Iterable[Row]]] = {
    "accuracy": _accuracy,
    "checkpoints": _checkpoints,
    "converged": _converged,
    "costs": _costs,
    "depths": _depths,
    "gains": _gains,
    "growth": _growth,
    "positions": _positions,
    "processes": _processes,
    "shrink": _shrink,
    "verdicts": _verdicts,
    "verdicts of CIFAR-10": _verdicts_of_cifar10,
    "ways": _ways,
}


def _quote(page: Path, report: str, beginning: str) -> str:
    """The paragraph of a report that begins so, as a quotation, its links leading on from the page."""
    source = RESULTS / report / "README.md"
    paragraph = next((part for part in source.read_text().split("\n\n") if part.startswith(beginning)), None)
    if paragraph is None:
        raise ValueError(f"{page.name}: expected a paragraph of {report} that begins {beginning!r}, found none")

    def moved(found: re.Match[str]) -> str:
        return found[0] if "://" in found[1] else f"]({_path(page, source.parent / found[1])})"

    text = re.sub(r"\]\(([^)]+)\)", moved, paragraph) + f" ({_link(page, 'report', report)})"
    return "\n".join(f"> {line}" for line in text.splitlines())


def _table(rows: Iterable[Row]) -> str:
    rows = list(rows)
    lines = [list(rows[0]), ["---"] * len(rows[0]), *(list(row.values()) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def _mean(cell: str) -> str:
    """``6.13`` of ``6.13 ± 0.45`` and of ``6.13 (5.7 to 6.6)``."""
    return cell.split()[0]


def _link(page: Path, text: str, report: str) -> str:
    return f"[{text}]({_path(page, RESULTS / report / 'README.md')})"


def _path(page: Path, target: Path) -> str:
    return Path(os.path.relpath(target, page.parent)).as_posix()


if __name__ == "__main__":
    for page in PAGES:
        page.write_text(written(page))
