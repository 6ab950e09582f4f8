"""Why the learning rate over depth is not corrected by the gain of the layers."""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import study
from depth_coordinate_check import OPTIMIZERS, changes
from figures import curves, finish, panels
from linear_autoencoders import Stack, Trial
from matplotlib.figure import Figure
from tables import Row, Rows, different, share, spread, summary, values, where

from lightning_rank.functional import inverse_depth

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


def corrections(power: int) -> dict[str, Callable[[int], float]]:
    """The multiplier as shipped, and corrected by the gain ``s`` of a factor."""
    return {
        PLAIN: inverse_depth,
        f"1 / (N s^{'(N - 1)' if power == 1 else '(2 (N - 1))'})": lambda depth: (
            inverse_depth(depth) * GAIN ** (-power * (depth - 1) / depth)
        ),
    }


def measure(depths: Sequence[int] = DEPTHS, seeds: Sequence[int] = SEEDS, steps: int = 1000) -> study.Tables:
    """One step from a small gain, and a training on data of rank 8, with and without the correction."""
    rows: list[Row] = []
    for (optimizer, training), depth in itertools.product(TRAININGS.items(), depths):
        trials = [Trial(RANK, depth, seed, GAIN) for seed in seeds]
        for rule, multiplier in corrections(training.power).items():
            options = {"multiplier": multiplier(depth)}
            stack = Stack.trained(trials, OPTIMIZERS[optimizer][1], training.rate, steps, **options)
            for row in stack.measure(trials):
                first = changes(optimizer, depth, multiplier(depth), GAIN, row["seed"], 1)[0]
                single = changes(optimizer, 1, 1.0, GAIN, row["seed"], 1)[0]
                kept = {key: row[key] for key in ("depth", "seed", "found", "excess", "variance_ratio")}
                rows.append({"rule": rule, "optimizer": optimizer, "lr": training.rate, **kept})
                rows[-1]["one_step"] = first / single
    return {"runs": rows}


def works(row: Row) -> bool:
    """Rank and error are right."""
    return row["found"] == RANK and 0.97 <= row["excess"] <= 1.06


def trained(rows: Rows) -> list[Row]:
    """Those that did not diverge."""
    return [row for row in rows if math.isfinite(row["excess"])]


def judged(rows: Rows) -> str:
    """Whether trainings with the correction find the rank: all, at least as many as without, or fewer."""
    plain, corrected = ([works(row) for row in rows if (row["rule"] == PLAIN) is plain] for plain in (True, False))
    return study.judged(all(corrected), sum(corrected) >= sum(plain) > 0)


def verdict(runs: Rows) -> str:
    """What the report says of it."""
    plain, found = where(runs, rule=PLAIN), judged(runs)
    wrong = []
    for optimizer in TRAININGS:
        some = [row for row in where(runs, optimizer=optimizer) if row["rule"] != PLAIN]
        wrong.append(
            f"{share(some, lambda row: not works(row))} runs of {optimizer}, whose first step is "
            f"{spread(values(some, 'one_step'))} times that at depth 1"
        )
    why = """ Stability is decided late, when singular values near 1 have been learned and the layers are no longer
small."""
    return f"""**Verdict: the correction {found}**: diverged or wrong in {"; in ".join(wrong)}. Plain 1 / N is right in
{share(plain, works)}, with first steps of {spread(values(plain, "one_step"))} times that at depth 1
and excess errors of {spread(values(trained(plain), "excess"))}.{why if found == "does not hold" else ""}"""


def corrected(rows: Rows) -> str:
    """What the corrections do at the first step and after training."""

    def of_trained(key: str) -> Callable[[Rows], Any]:
        return lambda some: spread(values(trained(some), key)) if trained(some) else "-"

    return summary(
        rows,
        {"optimizer": "optimizer", "rule": "multiplier", "depth": "depth N"},
        {
            "first step / that at depth 1": "one_step",
            f"rank found (of {RANK})": of_trained("found"),
            "excess error": of_trained("excess"),
            "diverged": lambda some: share(some, lambda row: row not in trained(some)),
        },
    )


def picture(runs: Rows) -> Figure:
    """Error after training against depth; a run that diverged is a cross at the upper edge."""
    figure, grid = panels(runs, "optimizer", size=(8.4, 4), sharey=True)
    for axes, some in grid:
        curves(axes, trained(some), "depth", "excess", by="rule", style="")
        lost = [row["depth"] for row in some if row not in trained(some)]
        axes.plot(lost, [1.09] * len(lost), "kx", label="diverged")
        axes.axhline(1, color="black", linewidth=0.8, linestyle=":")
        axes.set_ylim(0.7, 1.1)
    return finish(figure, "linear layers", "error / best of the data's rank", different(runs, "depth"))


def text(runs: Rows, verdict: str, seeds: Sequence[int], steps: int) -> str:
    """The report."""
    return f"""The autoencoder and data of [synthetic_recovery](../synthetic_recovery/README.md), of rank {RANK},
end-to-end gain {GAIN}, {steps:,} steps; seeds {", ".join(map(str, seeds))}.

From factors of gain `s` below 1, SGD moves the composed matrix by `s^(2 (N - 1))` times as much, and Adam by about
`s^(N - 1)`. Dividing that out makes the first step right at every depth. Trained on from there (Adam at
{TRAININGS["Adam"].rate:g}, SGD with momentum at {TRAININGS["SGD, momentum 0.9"].rate:g}), it is another matter:

{corrected(runs)}

![Error after training against depth](excess.png)

{verdict}"""


STUDY = study.Study(
    name="gain_corrected_rate",
    title="Learning rates corrected by the gain",
    measure=measure,
    text=text,
    verdict=verdict,
    figures={"excess.png": picture},
    quick={"depths": (4,), "seeds": SEEDS[:1], "steps": 30},
)
if __name__ == "__main__":
    STUDY.main()
