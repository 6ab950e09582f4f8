"""The report of a sweep: a CSV file, a Markdown page with its plots, and an HTML page that holds all of it."""

import base64
import html
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from rank_trainer.files import write_whole
from rank_trainer.report import tables
from rank_trainer.report.plots import PLOTS, figure
from rank_trainer.report.tables import TABLES, Results

NOTES = (
    "A row is a method, depth and gain: the mean over seeds ± the half-width of its 95 % interval (Student's t). "
    "Ranks are of the validation latents: the effective rank is the exp-entropy of singular values, the numerical rank "
    "counts variances above {variance_rtol:g} of the largest, the participation ratio is of variances. Errors are "
    "squared errors of a sample, summed over features; `cut/r/error` is the test error with the latents cut to their r "
    "leading directions. Accuracies are of linear probes on the latents, regularized by "
    "validation, on test data. Samples are decoded from a Gaussian and from a mixture of ten, fitted to training "
    "latents in the subspace of their numerical rank, and compared with as many test images. `frechet/classifier` is a "
    "Fréchet distance of features of a small classifier trained on the same training data: it is not the FID and "
    "compares with nothing outside this sweep. `fid/inception` is the FID."
)

STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 1200px; margin: 0 auto; padding: 0 16px 48px; color: #222; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.2rem; margin-top: 2rem; } h3 { font-size: 1rem; margin-bottom: .3rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .7rem; text-align: right; border-bottom: 1px solid #ddd; white-space: nowrap; }
th { vertical-align: bottom; white-space: normal; }
.pictures { display: flex; flex-wrap: wrap; gap: 12px; }
figure { margin: 0; max-width: 100%; } figcaption { font-size: .85rem; color: #555; }
img { max-width: 100%; height: auto; }
code { background: #f2f2f2; padding: 0 .2em; overflow-wrap: anywhere; }
"""


def text(results: Results) -> str:
    """The tables, for a terminal."""
    filled = [tables.cells(results, measures) for measures in TABLES.values()]
    return "\n\n".join(tables.markdown(rows) for rows in filled if rows)


def write(results: Results, grids: dict[str, list[Path]], settings: dict[str, Any], directory: Path) -> list[str]:
    """Write ``results.csv``, plots, ``report.md`` and ``report.html``, and return their names.

    Args:
        results: A dict a run.
        grids: Pictures of each run, by its name.
        settings: What all runs have in common.
        directory: Where to.
    """
    write_whole(directory / "results.csv", tables.csv_text(results))
    plots = {name: panels for name, (_, draw) in PLOTS.items() if (panels := draw(results))}
    for name, panels in plots.items():
        figure(panels).savefig(directory / f"{name}.png")
    shown = _first_of_each(results, grids)
    write_whole(directory / "report.md", _markdown(results, list(plots), shown, settings, directory))
    write_whole(directory / "report.html", _html(results, plots, shown, settings))
    return ["report.html", "report.md", "results.csv", *(f"{name}.png" for name in plots)]


def _first_of_each(results: Results, grids: dict[str, list[Path]]) -> dict[str, list[Path]]:
    """The grids of one seed: the others look alike."""
    first = min((row["seed"] for row in results), default=0)
    return {name: paths for name, paths in grids.items() if paths and name.endswith(f"-seed{first}")}


def _markdown(
    results: Results, plots: Sequence[str], grids: dict[str, list[Path]], settings: dict[str, Any], directory: Path
) -> str:
    parts = [f"# {settings['sweep']}"]
    for title, measures in TABLES.items():
        rows = tables.cells(results, measures)
        if rows:
            parts += [f"## {title}", tables.markdown(rows)]
    parts += [NOTES.format_map(settings).strip(), "Figures of every run: [results.csv](results.csv)."]
    for name in plots:
        title = PLOTS[name][0]
        parts += [f"## {title}", f"![{title}]({name}.png)"]
    for run, paths in grids.items():
        parts += [f"## {run}"]
        for path in paths:
            parts += [f"![{_caption(path)}]({path.relative_to(directory).as_posix()})"]
    parts += ["## Settings", "\n".join(f"- `{key}`: `{value}`" for key, value in settings.items())]
    return "\n\n".join(parts) + "\n"


def _html(results: Results, plots: dict[str, list[Any]], grids: dict[str, list[Path]], settings: dict[str, Any]) -> str:
    title = html.escape(settings["sweep"])
    parts = [f"<h1>{title}</h1>"]
    for heading, measures in TABLES.items():
        rows = tables.cells(results, measures)
        if rows:
            parts += [f"<h2>{heading}</h2>", _table(rows)]
    parts += [f"<p>{_marked_up(NOTES.format_map(settings))}</p>"]
    for name, panels in plots.items():
        heading = PLOTS[name][0]
        # One by one, so that a phone shows them below each other.
        images = [_image(_png(figure([panel])), heading) for panel in panels]
        parts += [f"<h2>{heading}</h2>", f'<div class="pictures">{"".join(images)}</div>']
    if grids:
        parts += ["<h2>What the autoencoders make</h2>"]
    for run, paths in grids.items():
        figures = [
            f"<figure>{_image(path.read_bytes(), _caption(path))}<figcaption>{_caption(path)}</figcaption></figure>"
            for path in paths
        ]
        parts += [f"<h3>{html.escape(run)}</h3>", f'<div class="pictures">{"".join(figures)}</div>']
    rows = "".join(
        f"<li>{html.escape(key)}: <code>{html.escape(str(value))}</code></li>" for key, value in settings.items()
    )
    parts += ["<h2>Settings</h2>", f"<ul>{rows}</ul>"]
    viewport = '<meta name="viewport" content="width=device-width, initial-scale=1">'
    head = f'<meta charset="utf-8">{viewport}<title>{title}</title>'
    body = "\n".join(parts)
    return (
        f'<!doctype html>\n<html lang="en"><head>{head}<style>{STYLE}</style></head>\n<body>\n{body}\n</body></html>\n'
    )


def _table(rows: Sequence[Sequence[str]]) -> str:
    header, *body = rows
    lines = ["<tr>" + "".join(f"<th>{html.escape(cell)}</th>" for cell in header) + "</tr>"]
    lines += ["<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in body]
    return f'<div class="scroll"><table>{"".join(lines)}</table></div>'


def _image(png: bytes, alt: str) -> str:
    return f'<img alt="{html.escape(alt)}" src="data:image/png;base64,{base64.b64encode(png).decode()}">'


def _png(drawn: Figure) -> bytes:
    file = io.BytesIO()
    drawn.savefig(file, format="png")
    return file.getvalue()


def _caption(path: Path) -> str:
    """Such as ``samples, gaussian``."""
    return {"reconstructions": "test images, each row above its reconstruction"}.get(
        path.stem, path.stem.replace("_", ", ")
    )


def _marked_up(text: str) -> str:
    """Escaped, with what stands in backticks as code."""
    parts = html.escape(text).split("`")
    return "".join(f"<code>{part}</code>" if k % 2 else part for k, part in enumerate(parts))
