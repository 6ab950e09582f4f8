"""Which learning rates train a linear autoencoder, by depth: what the learning rate over depth is for.

``--quick`` takes fewer depths, rates, seeds and steps and writes nothing.
"""

import argparse
import itertools
import math
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import report
import torch
from depth_coordinate_check import MULTIPLIERS, OPTIMIZERS
from linear_autoencoders import Cell, Stack
from matplotlib.figure import Figure

from rank_trainer.report.plots import COLOURS

NAME = "stable_rate"
RANK, GAIN = 8, 0.03
SEEDS = (75, 76, 77)
DEPTHS = (2, 4, 8, 16)
#: A factor of 2 apart.
RATES = {
    "Adam": [2.5e-4 * 2**k for k in range(10)],
    "SGD, momentum 0.9": [2.5e-3 * 2**k for k in range(9)],
}
#: Error over the best of the data's rank, up to which a run counts as trained; below it noise is fitted.
TRAINED = 1.06


def trains(row: dict[str, Any]) -> bool:
    """It came to the error of the data's rank, or below, by fitting noise in further directions."""
    return row["excess"] <= TRAINED


def finds_rank(row: dict[str, Any]) -> bool:
    """It trains and has the rank of the data."""
    return trains(row) and row["found"] == RANK


CRITERIA = {"trains": trains, "finds the rank": finds_rank}


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


def good_range(rows: Sequence[dict[str, Any]], criterion: Callable[[dict[str, Any]], bool]) -> list[float]:
    """Learning rates good at all seeds: from the lowest on, up to the first that is not."""
    good: list[float] = []
    for lr in sorted({row["lr"] for row in rows}):
        if all(criterion(row) for row in rows if row["lr"] == lr):
            good.append(lr)
        elif good:
            break  # what is good beyond a gap is luck
    return good


def ranges(rows: Sequence[dict[str, Any]], optimizer: str, scaling: str, criterion: str) -> dict[int, list[float]]:
    """Those of all depths."""
    some = [row for row in rows if (row["optimizer"], row["scaling"]) == (optimizer, scaling)]
    depths = list(dict.fromkeys(row["depth"] for row in some))
    return {depth: good_range([row for row in some if row["depth"] == depth], CRITERIA[criterion]) for depth in depths}


def change(by_depth: dict[int, list[float]]) -> float:
    """Highest rate of the depth where it is largest over that of the depth where it is smallest."""
    if not all(by_depth.values()):
        return math.inf
    highest = [rates[-1] for rates in by_depth.values()]
    return max(highest) / min(highest)


def table(rows: Sequence[dict[str, Any]], criterion: str) -> str:
    """A row for each optimizer and scaling: the range of each depth, and how its upper end changes over them."""
    lines = []
    for optimizer, scaling in dict.fromkeys((row["optimizer"], row["scaling"]) for row in rows):
        by_depth = ranges(rows, optimizer, scaling, criterion)
        shown = [f"{rates[0]:.3g} to {rates[-1]:.3g}" if rates else "none" for rates in by_depth.values()]
        common = sorted(set.intersection(*map(set, by_depth.values())))
        lines.append([optimizer, scaling, *shown, f"{common[0]:.3g} to {common[-1]:.3g}" if common else "none"])
        lines[-1].append(f"{change(by_depth):.3g}")
    header = [criterion, "linear layers at", *(f"{depth} layers" for depth in dict.fromkeys(r["depth"] for r in rows))]
    return report.markdown([*header, "all depths", "highest: largest / smallest"], lines)


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
        print(table(rows, "trains"))
        return
    changes = {
        criterion: {
            scaling: [change(ranges(rows, optimizer, scaling, criterion)) for optimizer in RATES]
            for scaling in MULTIPLIERS
        }
        for criterion in CRITERIA
    }
    scaled, unscaled = "lr / depth", "one lr"

    def verdict(criterion: str) -> str:
        ours, others = changes[criterion][scaled], changes[criterion][unscaled]
        return "holds" if max(ours) <= 1 else "holds within limits" if max(ours) < min(others) else "does not hold here"

    def told(criterion: str, scaling: str) -> str:
        return " and ".join(f"{c:.3g} ({o})" for o, c in zip(RATES, changes[criterion][scaling], strict=True))

    fitted = sum(trains(row) and not finds_rank(row) for row in rows)
    body = f"""The autoencoder and data of [synthetic_recovery](../synthetic_recovery/README.md), of rank {RANK},
end-to-end gain {GAIN}, {steps:,} steps; encoder and decoder at the learning rate, the linear layers at it over their
number, or at the same. A run trains if its held-out error is at most {TRAINED} times the best of the data's rank; it
finds the rank if it also has that rank. Rates are a factor of 2 apart; a range ends before the first rate at which
not all seeds did. Seeds {", ".join(map(str, SEEDS))}.

{table(rows, "trains")}

{table(rows, "finds the rank")}

**Verdict: the highest rate that trains is the same at all depths: {verdict("trains")}**, if the linear layers train at
it over their number. Over depths {DEPTHS[0]} to {DEPTHS[-1]} it changes by a factor of {told("trains", scaled)};
with one rate for all layers by {told("trains", unscaled)}.

**Verdict: the highest rate that finds the rank is the same at all depths: {verdict("finds the rank")}.** It changes by
a factor of {told("finds the rank", scaled)}; with one rate for all layers by {told("finds the rank", unscaled)}. Of
the runs that trained, {fitted} of {sum(map(trains, rows))} have another rank; for how long the rank stays, see
[rank_window](../rank_window/README.md).

![Error against learning rate by depth; on the left the layers train at the rate over their number](rates.png)

Every run: [runs.csv](runs.csv)."""
    print(body)
    report.write_csv(NAME, "runs.csv", rows)
    picture(rows).savefig(report.RESULTS / NAME / "rates.png")
    print(report.write(NAME, "Learning rates that train, by depth", body))


if __name__ == "__main__":
    main()
