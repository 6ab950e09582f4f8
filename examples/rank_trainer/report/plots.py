"""What came out of a sweep, as plots; each is a list of panels, to be drawn side by side or one by one."""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rank_trainer.report.tables import TABLES, Results

Panel = Callable[[Axes], None]

# How methods are shown; others go by their names.
TITLES = {"plain": "plain autoencoder", "irmae": "IRMAE style", "ours": "orthogonal, lr / depth (ours)"}
MARKERS = {"plain": "D", "irmae": "s", "ours": "o"}
OTHER_MARKERS = "^v<>P*X"
# Okabe and Ito's colours, told apart by colour-blind readers too.
COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"]
GREY = "#888888"
COLUMNS = 3


def rank_curves(results: Results) -> list[Panel]:
    """Effective rank of the validation latents against epoch, a panel a method."""
    top = 1.05 * max((row["rank/effective"] for result in results for row in result["history"]), default=1)

    def draw(axes: Axes, result: dict[str, Any], **style: Any) -> None:
        history = result["history"]
        axes.plot([row["epoch"] + 1 for row in history], [row["rank/effective"] for row in history], **style)
        axes.set(xlabel="epoch", ylabel="effective rank of the latents", ylim=(0, top))

    return _by_method(results, draw)


def spectra(results: Results) -> list[Panel]:
    """Singular values of the validation latents after training, over the largest, a panel a method."""

    def draw(axes: Axes, result: dict[str, Any], **style: Any) -> None:
        values = result["singular_values"]
        largest = max(values[0], 1e-300)
        axes.semilogy(range(1, len(values) + 1), [max(value / largest, 1e-6) for value in values], **style)
        axes.set(xlabel="principal direction", ylabel="singular value / largest", ylim=(1e-4, 1.5))

    return _by_method(results, draw)


def rank_by_depth(results: Results) -> list[Panel]:
    """Effective rank after training against depth, a line a method and gain: the mean over seeds, and their range."""

    def panel(axes: Axes) -> None:
        series = list(dict.fromkeys((row["method"], row["gain"]) for row in results if row["depth"]))
        markers = _markers(results)
        for k, (method, gain) in enumerate(series):
            by_depth: dict[int, list[float]] = {}
            for row in results:
                if (row["method"], row["gain"]) == (method, gain):
                    by_depth.setdefault(row["depth"], []).append(row["rank/effective"])
            depths = sorted(by_depth)
            means = [sum(by_depth[depth]) / len(by_depth[depth]) for depth in depths]
            below = [mean - min(by_depth[depth]) for mean, depth in zip(means, depths, strict=True)]
            above = [max(by_depth[depth]) - mean for mean, depth in zip(means, depths, strict=True)]
            axes.errorbar(
                depths,
                means,
                [below, above],
                label=_title(method) + ("" if gain is None else f", gain {gain:g}"),
                marker=markers[method],
                color=COLOURS[k % len(COLOURS)],
                capsize=3,
            )
        for label, colour in {
            style["label"]: style["color"] for row, style in _styled(results) if not row["depth"]
        }.items():
            ranks = [row["rank/effective"] for row, style in _styled(results) if style["label"] == label]
            axes.axhline(sum(ranks) / len(ranks), color=colour, linestyle="--", label=label)
        axes.set(xlabel="linear layers", ylabel="effective rank of the latents", ylim=(0, None))
        axes.set_xticks(sorted({row["depth"] for row in results if row["depth"]}))

    return [panel] if any(row["depth"] for row in results) else []


def error_by_cut(results: Results) -> list[Panel]:
    """Test error of each run with its latents cut to ever fewer directions, a panel a method."""

    def draw(axes: Axes, result: dict[str, Any], **style: Any) -> None:
        errors = {int(key.split("/")[1]): value for key, value in result.items() if key.startswith("cut/")}
        axes.plot(list(errors), list(errors.values()), marker=".", **style)
        axes.set(xlabel="directions of the latents kept", ylabel="test error", xscale="log", yscale="log")
        axes.set_xticks(list(errors), [f"{rank}" for rank in errors])
        axes.minorticks_off()

    cut = [result for result in results if any(key.startswith("cut/") for key in result)]
    return _by_method(cut, draw) if cut else []


def quality_by_rank(results: Results) -> list[Panel]:
    """Accuracies, distances of samples and test error against effective rank, a panel a measure, a point a run."""
    titles = TABLES["What the latents are good for"]
    wanted = {key: title for key, title in titles.items() if key != "samples/rank"} | {"test/error": "test error"}

    def panel(axes: Axes, key: str) -> None:
        markers = _markers(results)
        for row, style in _styled(results):
            if key in row:
                style |= {"marker": markers[row["method"]], "linestyle": "none"}
                style["label"] = f"{_title(row['method'])}, {style['label']}" if row["depth"] else style["label"]
                axes.plot(row["rank/effective"], row[key], **style)
        axes.set(xlabel="effective rank of the latents", ylabel=wanted[key])

    return [lambda axes, key=key: panel(axes, key) for key in wanted if any(key in result for result in results)]


PLOTS = {
    "rank_curves": ("Rank while training", rank_curves),
    "rank_by_depth": ("Rank and depth", rank_by_depth),
    "quality_by_rank": ("Accuracy, samples and error against rank", quality_by_rank),
    "spectra": ("Spectra", spectra),
    "error_by_cut": ("Error with fewer directions", error_by_cut),
}


def figure(panels: Sequence[Panel]) -> Figure:
    """Panels in rows of three, one legend below."""
    columns = min(COLUMNS, len(panels))
    rows = math.ceil(len(panels) / columns)
    drawn = Figure(figsize=(4.6 * columns, 3.6 * rows + 0.4), dpi=110, layout="constrained")
    every = drawn.subplots(rows, columns, squeeze=False).flat
    labelled: dict[str, Any] = {}
    for axes, panel in zip(every, panels, strict=False):
        panel(axes)
        axes.grid(alpha=0.3)
        handles, labels = axes.get_legend_handles_labels()
        labelled |= dict(zip(labels, handles, strict=True))
    for axes in drawn.axes[len(panels) :]:
        axes.remove()
    # As many to a row as there is room for.
    per_row = max(1, int(72 * 4.6 * columns / (6.2 * max(map(len, labelled), default=1) + 40)))
    drawn.legend(labelled.values(), labelled.keys(), loc="outside lower center", ncols=per_row, frameon=False)
    return drawn


def _by_method(results: Results, draw: Callable[..., None]) -> list[Panel]:
    """A panel for each method but the plain autoencoder, which is in all of them, in grey; a line a run."""
    methods = [name for name in dict.fromkeys(row["method"] for row in results) if name != "plain"] or ["plain"]

    def panel(axes: Axes, method: str) -> None:
        for result, style in _styled(results):
            if result["method"] in ("plain", method):
                draw(axes, result, linewidth=1.8, linestyle="--" if result["method"] == "plain" else "-", **style)
        axes.set_title(_title(method))

    return [lambda axes, method=method: panel(axes, method) for method in methods]


def _title(method: str) -> str:
    return TITLES.get(method, method)


def _markers(results: Results) -> dict[str, str]:
    others = (name for name in dict.fromkeys(row["method"] for row in results) if name not in MARKERS)
    return MARKERS | dict(zip(others, itertools.cycle(OTHER_MARKERS)))


def _styled(results: Results) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Each result with a label and a colour for its depth, and for its gain where there are several."""
    several = len({row["gain"] for row in results if row["gain"] is not None}) > 1

    def label(row: dict[str, Any]) -> str:
        name = f"depth {row['depth']}" if row["depth"] else _title(row["method"])
        return name + (f", gain {row['gain']:g}" if several and row["gain"] is not None else "")

    labels = dict.fromkeys(
        label(row) for row in sorted(results, key=lambda row: row["depth"] or math.inf) if row["method"] != "plain"
    )
    colours = dict(zip(labels, itertools.cycle(COLOURS))) | {TITLES["plain"]: GREY}
    return [(row, {"label": label(row), "color": colours[label(row)]}) for row in results]
