"""Why the learning rate over depth is not corrected by the gain of the layers.

``--quick`` takes fewer depths, seeds and steps and writes nothing.
"""

import argparse
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import report
import torch
from depth_coordinate_check import OPTIMIZERS, changes
from linear_autoencoders import Cell, Stack
from matplotlib.figure import Figure

from lightning_rank.functional import inverse_depth
from rank_trainer.report.plots import COLOURS

NAME = "gain_corrected_rate"
RANK, GAIN = 8, 0.03
SEEDS = (35, 36, 37)
DEPTHS = (2, 4, 8, 16)
PLAIN = "1 / N"


class Training(NamedTuple):
    """A learning rate, and the power of ``s^(N - 1)`` in the size of the first step."""

    rate: float
    power: int


TRAININGS = {
    "Adam": Training(1e-3, 1),
    "SGD, momentum 0.9": Training(0.02, 2),
}


def train(
    optimizer: str, depth: int, lr: float, multiplier: float, seeds: Sequence[int], steps: int
) -> list[dict[str, Any]]:
    """Train on data of rank 8: a row a seed."""
    cells = [Cell(RANK, depth, seed, GAIN) for seed in seeds]
    stack = Stack.of(cells)
    for _ in stack.train(OPTIMIZERS[optimizer][1](stack.param_groups(lr, multiplier=multiplier)), steps):
        pass
    kept = ("depth", "seed", "found", "excess", "variance_ratio")
    return [{"optimizer": optimizer, "lr": lr} | {key: row[key] for key in kept} for row in stack.measure(cells)]


def works(row: dict[str, Any]) -> bool:
    """Rank and error are right."""
    return row["found"] == RANK and 0.97 <= row["excess"] <= 1.06


def corrections(power: int) -> dict[str, Callable[[int], float]]:
    """The multiplier as shipped, and corrected by the gain ``s`` of a factor."""
    return {
        PLAIN: inverse_depth,
        f"1 / (N s^{'(N - 1)' if power == 1 else '(2 (N - 1))'})": lambda depth: (
            inverse_depth(depth) * GAIN ** (-power * (depth - 1) / depth)
        ),
    }


def correct(depths: Sequence[int], seeds: Sequence[int], steps: int) -> list[dict[str, Any]]:
    """One step from a small gain, and a training, with and without the correction."""
    rows = []
    for (optimizer, training), depth in itertools.product(TRAININGS.items(), depths):
        for rule, multiplier in corrections(training.power).items():
            for row in train(optimizer, depth, training.rate, multiplier(depth), seeds, steps):
                first = changes(optimizer, depth, multiplier(depth), GAIN, row["seed"], 1)[0]
                single = changes(optimizer, 1, 1.0, GAIN, row["seed"], 1)[0]
                rows.append({"rule": rule, **row, "one_step": first / single})
    return rows


def corrected(rows: list[dict[str, Any]]) -> str:
    """What the corrections do at the first step and after training."""
    table = []
    for key in dict.fromkeys((row["optimizer"], row["rule"], row["depth"]) for row in rows):
        some = [row for row in rows if (row["optimizer"], row["rule"], row["depth"]) == key]
        trained = [row for row in some if math.isfinite(row["excess"])]
        found, excess = (report.spread([row[k] for row in trained]) if trained else "-" for k in ("found", "excess"))
        one_step = report.spread([row["one_step"] for row in some])
        table.append([*key, one_step, found, excess, f"{len(some) - len(trained)} of {len(some)}"])
    header = ["optimizer", "multiplier", "depth N", "first step / that at depth 1", f"rank found (of {RANK})"]
    return report.markdown([*header, "excess error", "diverged"], table)


def judged(rows: list[dict[str, Any]]) -> str:
    """Whether trainings with the correction find the rank: all, at least as many as without, or fewer."""
    plain, corrected = ([works(row) for row in rows if (row["rule"] == PLAIN) is plain] for plain in (True, False))
    if all(corrected):
        return "holds"
    return "holds within limits" if sum(corrected) >= sum(plain) > 0 else "does not hold"


def verdict(rows: list[dict[str, Any]]) -> str:
    """What the report says of it."""

    def told(key: str, optimizer: str | None, plain: bool) -> str:
        values = [
            row[key]
            for row in rows
            if optimizer in (None, row["optimizer"]) and (row["rule"] == PLAIN) is plain and math.isfinite(row[key])
        ]
        return report.spread(values)

    wrong = []
    for optimizer in TRAININGS:
        some = [row for row in rows if row["optimizer"] == optimizer and row["rule"] != PLAIN]
        first = told("one_step", optimizer, plain=False)
        wrong.append(
            f"{len(some) - sum(map(works, some))} of {len(some)} runs of {optimizer}, whose first step is {first} "
            "times that at depth 1"
        )
    plain = [works(row) for row in rows if row["rule"] == PLAIN]
    found = judged(rows)
    why = """ Stability is decided late, when singular values near 1 have been learned and the layers are no longer
small."""
    return f"""**Verdict: the correction {found}**: diverged or wrong in {"; in ".join(wrong)}. Plain 1 / N is right in
{sum(plain)} of {len(plain)}, with first steps of {told("one_step", None, plain=True)} times that at depth 1
and excess errors of {told("excess", None, plain=True)}.{why if found == "does not hold" else ""}"""


def picture(rows: list[dict[str, Any]]) -> Figure:
    """Error after training against depth; a run that diverged is a cross at the upper edge."""
    figure = Figure(figsize=(8.4, 3.6), dpi=120, layout="constrained")
    for axes, (optimizer, training) in zip(
        figure.subplots(1, len(TRAININGS), sharey=True), TRAININGS.items(), strict=True
    ):
        for rule, colour in zip(corrections(training.power), COLOURS, strict=False):
            some = [row for row in rows if (row["optimizer"], row["rule"]) == (optimizer, rule)]
            trained = [row for row in some if math.isfinite(row["excess"])]
            lost = [row["depth"] for row in some if row not in trained]
            axes.plot(
                [row["depth"] for row in trained], [row["excess"] for row in trained], "o", color=colour, label=rule
            )
            axes.plot(lost, [1.09] * len(lost), "x", color=colour, label="diverged" if lost else None)
        axes.axhline(1, color="black", linewidth=0.8, linestyle=":")
        axes.set(
            xscale="log", xlabel="linear layers", xticks=DEPTHS, xticklabels=DEPTHS, title=optimizer, ylim=(0.7, 1.1)
        )
        axes.minorticks_off()
        axes.legend(frameon=False, loc="lower right")
    figure.axes[0].set_ylabel("error / best of the data's rank")
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer depths, seeds and steps, and nothing is written")
    args = parser.parse_args()
    torch.set_num_threads(1)
    depths, seeds, steps = ((4,), SEEDS[:1], 30) if args.quick else (DEPTHS, SEEDS, 1000)
    rules = correct(depths, seeds, steps)
    if args.quick:
        print(corrected(rules))
        return
    body = f"""The autoencoder and data of [synthetic_recovery](../synthetic_recovery/README.md), of rank {RANK},
end-to-end gain {GAIN}, {steps:,} steps; seeds {", ".join(map(str, SEEDS))}.

From factors of gain `s` below 1, SGD moves the composed matrix by `s^(2 (N - 1))` times as much, and Adam by about
`s^(N - 1)`. Dividing that out makes the first step right at every depth. Trained on from there (Adam at
{TRAININGS["Adam"].rate:g}, SGD with momentum at {TRAININGS["SGD, momentum 0.9"].rate:g}), it is another matter:

{corrected(rules)}

![Error after training against depth](excess.png)

{verdict(rules)}

Every run: [runs.csv](runs.csv)."""
    print(body)
    report.write_csv(NAME, "runs.csv", rules)
    picture(rules).savefig(report.RESULTS / NAME / "excess.png")
    print(report.write(NAME, "Learning rates corrected by the gain", body))


if __name__ == "__main__":
    main()
