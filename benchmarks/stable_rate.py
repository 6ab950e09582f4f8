"""Which learning rates train a linear autoencoder, by depth: what the learning rate over depth is for."""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence

import study
from depth_coordinate_check import MULTIPLIERS, OPTIMIZERS
from figures import curves, finish, panels
from linear_autoencoders import Stack, Trial
from matplotlib.figure import Figure
from tables import Row, Rows, different, markdown, share, values, where

RANK, GAIN = 8, 0.03
SEEDS = (75, 76, 77)
DEPTHS = (2, 4, 8, 16)
#: A factor of 2 apart.
RATES = {
    "Adam": [2.5e-4 * 2**k for k in range(10)],
    "SGD, momentum 0.9": [2.5e-3 * 2**k for k in range(9)],
}
SCALED, UNSCALED = MULTIPLIERS
#: Error over the best of the data's rank, up to which a run counts as trained; below it noise is fitted.
TRAINED = 1.06


def measure(
    depths: Sequence[int] = DEPTHS, seeds: Sequence[int] = SEEDS, steps: int = 1000, every: int = 1
) -> study.Tables:
    """Train on data of rank 8 at all rates, or at every second, third, ..."""
    rows: list[Row] = []
    for (optimizer, rates), (scaling, multiplier), depth in itertools.product(
        RATES.items(), MULTIPLIERS.items(), depths
    ):
        trials = [Trial(RANK, depth, seed, GAIN) for seed in seeds]
        for lr in rates[::every]:
            stack = Stack.trained(trials, OPTIMIZERS[optimizer][1], lr, steps, multiplier=multiplier(depth))
            settings = {"optimizer": optimizer, "scaling": scaling, "depth": depth, "lr": lr}
            rows += [settings | {key: row[key] for key in ("seed", "found", "excess")} for row in stack.measure(trials)]
    return {"runs": rows}


def trains(row: Row) -> bool:
    """It came to the error of the data's rank, or below, by fitting noise in further directions."""
    return row["excess"] <= TRAINED


def finds_rank(row: Row) -> bool:
    """It trains and has the rank of the data."""
    return trains(row) and row["found"] == RANK


CRITERIA = {"trains": trains, "finds the rank": finds_rank}


def good_range(rows: Rows, criterion: Callable[[Row], bool]) -> list[float]:
    """Learning rates good at all seeds: from the lowest on, up to the first that is not."""
    good: list[float] = []
    for lr in sorted(different(rows, "lr")):
        if all(map(criterion, where(rows, lr=lr))):
            good.append(lr)
        elif good:
            break  # what is good beyond a gap is luck
    return good


def ranges(rows: Rows, optimizer: str, scaling: str, criterion: str) -> dict[int, list[float]]:
    """Those of all depths."""
    some = where(rows, optimizer=optimizer, scaling=scaling)
    return {depth: good_range(where(some, depth=depth), CRITERIA[criterion]) for depth in different(some, "depth")}


def change(by_depth: Mapping[int, Sequence[float]]) -> float:
    """Highest rate of the depth where it is largest over that of the depth where it is smallest."""
    if not all(by_depth.values()):
        return math.inf
    highest = [rates[-1] for rates in by_depth.values()]
    return max(highest) / min(highest)


def changes(rows: Rows, criterion: str, scaling: str) -> dict[str, float]:
    """Those of each optimizer."""
    return {name: change(ranges(rows, name, scaling, criterion)) for name in different(rows, "optimizer")}


def judged(rows: Rows, criterion: str) -> str:
    """Whether the highest rate is the same at all depths, or changes less than with one rate for all layers."""
    ours, others = (changes(rows, criterion, scaling).values() for scaling in (SCALED, UNSCALED))
    return study.judged(max(ours) <= 1, max(ours) < min(others))


def verdict(runs: Rows) -> str:
    """What the report says of both criteria."""

    def told(criterion: str, scaling: str) -> str:
        return " and ".join(f"{factor:.3g} ({name})" for name, factor in changes(runs, criterion, scaling).items())

    trained, depths = list(filter(trains, runs)), values(runs, "depth")
    return f"""**Verdict: the highest rate that trains is the same at all depths: {judged(runs, "trains")}**, if the
linear layers train at it over their number. Over depths {min(depths)} to {max(depths)} it changes by a factor of
{told("trains", SCALED)}; with one rate for all layers by {told("trains", UNSCALED)}.

**Verdict: the highest rate that finds the rank is the same at all depths: {judged(runs, "finds the rank")}.** It
changes by a factor of {told("finds the rank", SCALED)}; with one rate for all layers by
{told("finds the rank", UNSCALED)}. Of the runs that trained,
{share(trained, lambda row: not finds_rank(row))} have another rank; for how long the rank stays, see
[rank_window](../rank_window/README.md)."""


def table(rows: Rows, criterion: str) -> str:
    """A row for each optimizer and scaling: the range of each depth, and how its upper end changes over them."""
    lines = []
    for optimizer, scaling in different(rows, "optimizer", "scaling"):
        by_depth = ranges(rows, optimizer, scaling, criterion)
        common = sorted(set.intersection(*map(set, by_depth.values())))
        columns = {f"{depth} layers": rates for depth, rates in by_depth.items()} | {"all depths": common}
        shown = {name: f"{rates[0]:.3g} to {rates[-1]:.3g}" if rates else "none" for name, rates in columns.items()}
        shown["highest: largest / smallest"] = f"{change(by_depth):.3g}"
        lines.append({criterion: optimizer, "linear layers at": scaling, **shown})
    return markdown(lines)


def picture(runs: Rows) -> Figure:
    """Error against learning rate, a line a depth; what diverged is at the upper edge."""
    top = 10.0
    cut = [row | {"error": row["excess"] if row["excess"] < top else top} for row in runs]  # NaN is the top, too
    figure, grid = panels(cut, "scaling", "optimizer", size=(9.6, 6.4), sharex="row", sharey=True)
    for axes, some in grid:
        curves(axes, some, "lr", "error", by="depth", label="{} layers")
        axes.axhline(TRAINED, color="black", linewidth=0.8, linestyle=":")
        axes.set(xscale="log", yscale="log", ylim=(0.6, 1.1 * top))
        axes.set(yticks=(1, 2, 5, top), yticklabels=("1", "2", "5", "10 or more"))
        axes.minorticks_off()
    return finish(figure, "learning rate", "error / best of the data's rank")


def text(runs: Rows, verdict: str, seeds: Sequence[int], steps: int) -> str:
    """The report."""
    return f"""The autoencoder and data of [synthetic_recovery](../synthetic_recovery/README.md), of rank {RANK},
end-to-end gain {GAIN}, {steps:,} steps; encoder and decoder at the learning rate, the linear layers at it over their
number, or at the same. A run trains if its held-out error is at most {TRAINED} times the best of the data's rank; it
finds the rank if it also has that rank. Rates are a factor of 2 apart; a range ends before the first rate at which
not all seeds did. Seeds {", ".join(map(str, seeds))}.

{table(runs, "trains")}

{table(runs, "finds the rank")}

{verdict}

![Error against learning rate by depth; on the left the layers train at the rate over their number](rates.png)"""


STUDY = study.Study(
    name="stable_rate",
    title="Learning rates that train, by depth",
    measure=measure,
    text=text,
    verdict=verdict,
    figures={"rates.png": picture},
    quick={"depths": (2, 4), "seeds": SEEDS[:1], "steps": 20, "every": 4},
)
if __name__ == "__main__":
    STUDY.main()
