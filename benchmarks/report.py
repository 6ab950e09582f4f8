"""A report: what was run, where, and a table of what came out."""

import csv
import functools
import platform
import sys
import textwrap
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"


def markdown(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table, the numbers to three digits."""
    cells = [list(header)] + [[_cell(value) for value in row] for row in rows]
    lines = ["| " + " | ".join(row) + " |" for row in cells]
    return "\n".join([lines[0], "|" + " --- |" * len(header), *lines[1:]])


def write(name: str, title: str, body: str) -> Path:
    """Write ``results/<name>/README.md`` with the environment behind the body."""
    path = RESULTS / name / "README.md"
    path.parent.mkdir(parents=True, exist_ok=True)
    command = " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]])
    path.write_text(f"# {title}\n\n{wrapped(body)}\n\n- Command: `{command}`\n{environment()}\n")
    return path


def wrapped(body: str) -> str:
    """The paragraphs filled to 120 columns; tables, lists, titles, pictures and indented blocks as they are."""
    blocks = body.split("\n\n")
    fill = functools.partial(textwrap.fill, width=120, break_long_words=False, break_on_hyphens=False)
    return "\n\n".join(block if block.startswith(("|", "- ", "#", "!", "    ")) else fill(block) for block in blocks)


def write_csv(name: str, file_name: str, rows: Sequence[Mapping[str, object]]) -> None:
    """Write ``results/<name>/<file_name>``, the numbers to four digits."""
    path = RESULTS / name / file_name
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows({key: _cell(value, 4) for key, value in row.items()} for row in rows)


def read_csv(name: str, file_name: str) -> list[dict[str, Any]]:
    """The rows that :func:`write_csv` wrote, numbers as numbers."""
    with (RESULTS / name / file_name).open(newline="") as file:
        return [{key: _read(value) for key, value in row.items()} for row in csv.DictReader(file)]


def spread(values: Sequence[float]) -> str:
    """The median, and the smallest and largest value where they differ."""
    middle, low, high = (f"{value:.3g}" for value in (median(values), min(values), max(values)))
    return middle if low == high else f"{middle} ({low} to {high})"


def environment() -> str:
    """Hardware and versions, as list items."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "lightning", "torchmetrics"))
    return (
        f"- Hardware: {_processor()}, {torch.get_num_threads()} thread(s) used, {device}.\n"
        f"- Versions: Python {platform.python_version()}, {packages}."
    )


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _read(text: str) -> Any:
    if text in ("None", "True", "False"):
        return {"None": None, "True": True, "False": False}[text]
    for number in (int, float):
        try:
            return number(text)
        except ValueError:
            pass
    return text


def _cell(value: object, digits: int = 3) -> str:
    return f"{value:.{digits}g}" if isinstance(value, float) else str(value)
