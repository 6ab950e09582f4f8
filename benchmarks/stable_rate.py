"""Which learning rates train a linear autoencoder, by depth: what the learning rate over depth is for.

``--quick`` takes fewer depths, rates, seeds and steps and writes nothing.
"""

import argparse
import itertools
from collections.abc import Sequence
from statistics import median
from typing import Any

import report
import torch
from depth_coordinate_check import MULTIPLIERS, OPTIMIZERS
from linear_autoencoders import Cell, Stack
from matplotlib.figure import Figure
from sweep_plots import COLOURS

NAME = "stable_rate"
RANK, GAIN = 8, 0.03
SEEDS = (75, 76, 77)
DEPTHS = (2, 4, 8, 16)
#: A factor of 2 apart.
RATES = {
    "Adam": [2.5e-4 * 2**k for k in range(10)],
    "SGD, momentum 0.9": [2.5e-3 * 2**k for k in range(9)],
}
#: Error over the best of the data's rank, up to which a run counts as trained.
TRAINED = 1.06


def train(
    optimizer: str, scaling: str, depth: int, lr: float, seeds: Sequence[int], steps: int
) -> list[dict[str, Any]]:
    """Train on data of rank 8: a row a seed."""
    cells = [Cell(RANK, depth, seed, GAIN) for seed in seeds]
    stack = Stack.of(cells)
    groups = stack.param_groups(lr, multiplier=MULTIPLIERS[scaling](depth))
    for _ in stack.train(OPTIMIZERS[optimizer][1](groups), steps):
        pass
    settings = {"optimizer": optimizer, "scaling": scaling, "depth": depth, "lr": lr}
    return [settings | {key: row[key] for key in ("seed", "found", "excess")} for row in stack.measure(cells)]


def trained_range(rows: Sequence[dict[str, Any]]) -> tuple[float, float]:
    """Lowest learning rate at which all seeds trained, and the highest up to which they went on to; NaN without one."""
    good: list[float] = []
    for lr in sorted({row["lr"] for row in rows}):
        if all(row["excess"] <= TRAINED for row in rows if row["lr"] == lr):
            good.append(lr)
        elif good:
            break  # what trains beyond a gap is luck
    return (good[0], good[-1]) if good else (float("nan"), float("nan"))


def ranges(rows: Sequence[dict[str, Any]]) -> dict[tuple[str, str], dict[int, tuple[float, float]]]:
    """Those of each optimizer and scaling, by depth."""
    found: dict[tuple[str, str], dict[int, tuple[float, float]]] = {}
    for optimizer, scaling, depth in dict.fromkeys((row["optimizer"], row["scaling"], row["depth"]) for row in rows):
        some = [r for r in rows if (r["optimizer"], r["scaling"], r["depth"]) == (optimizer, scaling, depth)]
        found.setdefault((optimizer, scaling), {})[depth] = trained_range(some)
    return found


def table(rows: Sequence[dict[str, Any]]) -> str:
    """A row for each optimizer and scaling, and how much the highest rate changes over the depths."""
    lines = []
    for key, by_depth in ranges(rows).items():
        highest = [high for _, high in by_depth.values()]
        lines.append([*key, *(f"{low:.3g} to {high:.3g}" for low, high in by_depth.values())])
        lines[-1].append(f"{max(highest) / min(highest):.3g}")
    depths = list(dict.fromkeys(row["depth"] for row in rows))
    header = ["optimizer", "linear layers at", *(f"{depth} layers" for depth in depths)]
    return report.markdown([*header, "highest: largest / smallest"], lines)


def picture(rows: Sequence[dict[str, Any]]) -> Figure:
    """Error against learning rate, a line a depth; what diverged is at the upper edge."""
    top = 10.0
    figure = Figure(figsize=(9.6, 6.4), dpi=120, layout="constrained")
    panels = figure.subplots(len(RATES), len(MULTIPLIERS), sharex="row", sharey=True)
    for (line, optimizer), (column, scaling) in itertools.product(enumerate(RATES), enumerate(MULTIPLIERS)):
        axes = panels[line, column]
        for depth, colour in zip(DEPTHS, COLOURS, strict=False):
            some = [r for r in rows if (r["optimizer"], r["scaling"], r["depth"]) == (optimizer, scaling, depth)]
            shown = [median([_up_to(row["excess"], top) for row in some if row["lr"] == lr]) for lr in RATES[optimizer]]
            axes.plot(RATES[optimizer], shown, "o-", color=colour, markersize=4, label=f"{depth} layers")
        axes.axhline(TRAINED, color="black", linewidth=0.8, linestyle=":")
        axes.set(xscale="log", yscale="log", ylim=(0.6, 1.1 * top), title=f"{optimizer}, {scaling}")
        axes.set(yticks=(1, 2, 5, top), yticklabels=("1", "2", "5", "10 or more"))
        axes.minorticks_off()
        axes.grid(alpha=0.3)
    for axes in panels[-1]:
        axes.set_xlabel("learning rate")
    for axes in panels[:, 0]:
        axes.set_ylabel("error / best of the data's rank")
    panels[0, 0].legend(frameon=False)
    return figure


def _up_to(value: float, top: float) -> float:
    return value if value < top else top  # NaN is the top, too


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer of everything, and nothing is written")
    args = parser.parse_args()
    torch.set_num_threads(1)
    depths, seeds, steps, every = ((2, 4), SEEDS[:1], 20, 4) if args.quick else (DEPTHS, SEEDS, 1000, 1)
    rows = [
        row
        for (optimizer, rates), scaling, depth in itertools.product(RATES.items(), MULTIPLIERS, depths)
        for lr in rates[::every]
        for row in train(optimizer, scaling, depth, lr, seeds, steps)
    ]
    if args.quick:
        print(table(rows))
        return
    found = ranges(rows)
    changes = {key: max(h for _, h in by.values()) / min(h for _, h in by.values()) for key, by in found.items()}
    scaled, unscaled = ([changes[optimizer, scaling] for optimizer in RATES] for scaling in MULTIPLIERS)
    verdict = "holds" if max(scaled) <= 1 else "holds within limits" if max(scaled) < min(unscaled) else "does not hold"
    body = f"""The autoencoder and data of [synthetic_recovery](../synthetic_recovery/README.md), of rank {RANK},
end-to-end gain {GAIN}, {steps:,} steps; encoder and decoder at the learning rate, the linear layers at it over their
number, or at the same. A run is trained if its held-out error is at most {TRAINED} times the best of the data's rank;
rates are a factor of 2 apart, and the range ends before the first at which not all seeds trained. Seeds
{", ".join(map(str, SEEDS))}.

{table(rows)}

**Verdict: one learning rate fits all depths: {verdict}**, if the linear layers train at it over their number. The
highest rate that trains changes over depths {DEPTHS[0]} to {DEPTHS[-1]} by a factor of
{" and ".join(f"{changes[optimizer, 'lr / depth']:.3g} ({optimizer})" for optimizer in RATES)}; with one rate for
all layers by
{" and ".join(f"{changes[optimizer, 'one lr']:.3g} ({optimizer})" for optimizer in RATES)}.

![Error against learning rate: on the left the curves of all depths end together, on the right apart](rates.png)

That it trains does not mean that the rank is right: at high rates Adam passes the
[window of the rank](../rank_window/README.md) within these steps, and the error falls below that of the data's rank.

Every run: [runs.csv](runs.csv)."""
    print(body)
    report.write_csv(NAME, "runs.csv", rows)
    picture(rows).savefig(report.RESULTS / NAME / "rates.png")
    print(report.write(NAME, "Learning rates that train, by depth", body))


if __name__ == "__main__":
    main()
