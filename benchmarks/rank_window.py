"""How long a linear autoencoder keeps the rank of its data without coupled decay, and if a rule stops it in time."""

import functools
import itertools
import math
from collections.abc import Sequence
from statistics import median
from typing import Any, NamedTuple

import study
import torch
from figures import finish, panels
from linear_autoencoders import Stack, Trial
from matplotlib.figure import Figure
from tables import Row, Rows, different, share, spread, summary, values, where
from torch.optim import SGD, Adam, AdamW
from torch.optim.lr_scheduler import CosineAnnealingLR

from rank_trainer.report.plots import COLOURS

SEEDS = (50, 51, 52)
RANKS = (4, 8, 16)
DEPTHS = (2, 4, 8, 16)
EVERY = 100


class Setting(NamedTuple):
    """How to train, and on what."""

    make_optimizer: Any
    lr: float = 1e-3
    weight_decay: float = 0.0
    cosine: bool = False
    noise: float = 0.05
    bias: bool = False


NOISY = "Adam, noise 0.1, with biases"
SETTINGS = {
    "Adam": Setting(Adam),
    "Adam, cosine to 0": Setting(Adam, cosine=True),
    "Adam, eps 0.01": Setting(functools.partial(Adam, eps=1e-2)),
    "AdamW, decay 0.01": Setting(AdamW, weight_decay=0.01),
    "SGD, momentum 0.9, lr 0.02": Setting(functools.partial(SGD, momentum=0.9), lr=0.02),
    NOISY: Setting(Adam, noise=0.1, bias=True),
}


def train(name: str, depth: int, ranks: Sequence[int], steps: int) -> list[Row]:
    """Train on all ranks and seeds: a row for each, with rank and held-out error at every check."""
    setting = SETTINGS[name]
    trials = [
        Trial(rank, depth, seed, noise=setting.noise, bias=setting.bias)
        for rank, seed in itertools.product(ranks, SEEDS)
    ]
    stack = Stack.of(trials)
    optimizer = setting.make_optimizer(stack.param_groups(setting.lr, weight_decay=setting.weight_decay))
    scheduler = CosineAnnealingLR(optimizer, steps) if setting.cosine else None
    ranks_found, errors = [], []
    for step in stack.train(optimizer, steps, scheduler):
        if step % EVERY == 0:
            ranks_found.append(stack.ranks())
            with torch.no_grad():
                errors.append(stack.losses(stack.held_out))
    found, error = torch.stack(ranks_found, 1).tolist(), torch.stack(errors, 1).tolist()
    return [
        {"setting": name, **row, "ranks": ranks_of_trial, "errors": errors_of_trial}
        for row, ranks_of_trial, errors_of_trial in zip(stack.measure(trials), found, error, strict=True)
    ]


def measure(ranks: Sequence[int] = RANKS, depths: Sequence[int] = DEPTHS, steps: int = 20_000) -> study.Tables:
    """The course of the rank in each run; when its window opens and closes, and where the rule would have stopped."""
    jobs = study.progress(itertools.product(SETTINGS, depths))
    courses = [row for name, depth in jobs for row in train(name, depth, ranks, steps)]
    windows = [
        {key: value for key, value in row.items() if key not in ("ranks", "errors")}
        | dict(zip(("window_starts", "window_ends"), window(row), strict=True))
        | {"stopped_at_rank": stopped(row)}
        for row in courses
    ]
    return {"windows": windows, "courses": courses}


def window(row: Row) -> tuple[float, float]:
    """First and last step of the longest time that the rank is that of the data; infinite if it does not come or go."""
    longest, start = (math.inf, math.inf), None
    for index, rank in enumerate([*row["ranks"], None], 1):
        if rank == row["rank"]:
            start = index if start is None else start
        elif start is not None:
            end = math.inf if rank is None else (index - 1) * EVERY
            if longest[0] == math.inf or end - start * EVERY > longest[1] - longest[0]:
                longest = (start * EVERY, end)
            start = None
    return longest


def stopped(row: Row, checks: int = 5, improvement: float = 0.03) -> int | None:
    """Rank once it has been the same, below full width, at so many checks, and the error has improved by less."""
    ranks, errors = row["ranks"], row["errors"]
    for end in range(checks, len(ranks) + 1):
        plateau = set(ranks[end - checks : end])
        still = errors[end - 1] > (1 - improvement) * errors[end - checks]
        if len(plateau) == 1 and plateau < set(range(1, 32)) and still:
            return ranks[end - 1]
    return None


def right(row: Row) -> bool:
    """Whether the rule stopped at the rank of the data."""
    return row["stopped_at_rank"] == row["rank"]


def lasts(row: Row) -> bool:
    """Whether the rank was still that of the data at the end."""
    return row["window_ends"] == math.inf and row["found"] == row["rank"]


def judged(windows: Rows, name: str = "Adam") -> str:
    """Whether runs keep the rank of their data: to the end, for a time, or not even that."""
    some = where(windows, setting=name)
    return study.judged(all(map(lasts, some)), all(start < math.inf for start in values(some, "window_starts")))


def window_verdict(windows: Rows, steps: int) -> str:
    """What the report says of the window."""
    adam, found, depths = where(windows, setting="Adam"), judged(windows), different(windows, "depth")
    lengths = []
    for name in different(windows, "setting"):
        closing = [median(values(windows, "window_ends", setting=name, depth=depth)) for depth in depths]
        lengths.append(f"{name}: {' / '.join(_told([end], steps) for end in closing)}")
    return f"""**Verdict: {found}**{", of time" if found == "holds within limits" else ""}. Under Adam
{share(adam, lambda row: row["window_starts"] < math.inf)} runs come to the rank of their data, and
{sum(row["window_ends"] < math.inf for row in adam)} leave it again. The median step at which the window ends, over
ranks and seeds, at depths {" / ".join(map(str, depths))}: {"; ".join(lengths)}."""


def stop_judged(windows: Rows) -> str:
    """Whether the rule stops all runs at the rank of their data, those on clean data only, or not even them."""
    clean, noisy = (all(map(right, where(windows, setting=name))) for name in ("Adam", NOISY))
    return study.judged(clean and noisy, clean)


def stop_verdict(windows: Rows) -> str:
    """What the report says of the stopping rule."""
    found = stop_judged(windows)
    shipped = """ Not shipped: it sees a plateau, and a plateau is not the truth. Coupled decay holds the rank in those
same circumstances, and `EarlyStopping` can watch `rank/numerical` for who wants to stop at it."""
    return f"""**Verdict: {found}**{", of little noise" if found == "holds within limits" else ""}. Where all is as it
should be (no biases, little noise) the rule is right in {share(where(windows, setting="Adam"), right)} under Adam; with
biases and more noise in {share(where(windows, setting=NOISY), right)}.{shipped if found != "holds" else ""}"""


def verdict(windows: Rows, steps: int = 20_000) -> str:
    """What the report says of both."""
    return f"{window_verdict(windows, steps)}\n\n{stop_verdict(windows)}"


def table(windows: Rows, steps: int) -> str:
    """When the rank comes and goes, by setting, rank and depth: medians over seeds, and the ends."""

    def opens(some: Rows, depth: int) -> str:
        starts, ends = (values(some, key, depth=depth) for key in ("window_starts", "window_ends"))
        return f"{_told(starts)} to {_told(ends, steps)}"

    columns = {}
    for d in different(windows, "depth"):
        columns[f"depth {d}: window"] = lambda some, d=d: opens(some, d)
        columns[f"depth {d}: rank at the end"] = lambda some, d=d: spread(values(some, "found", depth=d))
    return summary(windows, {"setting": "setting", "rank": "rank"}, columns)


def stops(windows: Rows) -> str:
    """What the stopping rule gives for each setting."""
    return summary(
        windows,
        {"setting": "setting"},
        {
            "stopped at the rank of the data": lambda some: share(some, right),
            "not stopped": lambda some: values(some, "stopped_at_rank").count(None),
        },
    )


def picture(courses: Rows) -> Figure:
    """Rank against step at one seed, a panel a setting."""
    figure, grid = panels(where(courses, seed=SEEDS[0]), "setting", size=(12, 6.8), sharex=True, sharey=True)
    styles = dict(zip(DEPTHS, (":", "-.", "--", "-"), strict=True))
    for axes, some in grid:
        for row in sorted(some, key=lambda row: row["rank"]):
            steps = [EVERY * index for index in range(1, len(row["ranks"]) + 1)]
            look = {"color": COLOURS[RANKS.index(row["rank"])], "linestyle": styles[row["depth"]], "linewidth": 1.4}
            axes.plot(steps, row["ranks"], **look, label=f"rank {row['rank']}, depth {row['depth']}")
            axes.axhline(row["rank"], color="black", linewidth=0.5, linestyle=":")
        axes.set_xscale("log")
    return finish(figure, "step", "numerical rank")


def text(windows: Rows, steps: int) -> str:
    """The report."""
    lasting = [f"{name}: {share(where(windows, setting=name), lasts)}" for name in different(windows, "setting")]
    return f"""Ours as in [synthetic_recovery](../synthetic_recovery/README.md), orthogonal layers of gain 0.03 at the
learning rate over depth, trained on for {steps:,} steps. The rank of the held-out latents (more than 1e-3 of the
largest *variance*) is checked every {EVERY} steps. The window is the longest time at the rank of the data, from its
first to its last check; the median over seeds {", ".join(map(str, SEEDS))} (and the ends, where they differ). Adam
and AdamW at 1e-3. Their weight decay, where there is any, is decoupled; for coupled decay see
[rank_fixed_point](../rank_fixed_point/README.md).

{table(windows, steps)}

Still at the rank of the data at the end: {"; ".join(lasting)}.

{window_verdict(windows, steps)}

![Rank against step](window.png)

One seed; the others are in [windows.csv](windows.csv).

## A rule to stop in time

Stop when the rank has been the same at 5 checks, {EVERY} steps apart, and below full width, and the held-out error
has improved by less than 3 % over them. Where it would have stopped these runs:

{stops(windows)}

{stop_verdict(windows)}"""


def _told(numbers: Sequence[float], end: int | None = None) -> str:
    """Steps; an infinite one is the end, or never came."""
    low, middle, high = (
        f"{x:,.0f}" if x < math.inf else (f"{end:,}+" if end else "never")
        for x in (min(numbers), median(numbers), max(numbers))
    )
    return middle if low == high else f"{middle} ({low} to {high})"


STUDY = study.Study(
    name="rank_window",
    title="The window of the rank",
    measure=measure,
    text=text,
    verdict=verdict,
    figures={"window.png": picture},
    quick={"ranks": (4,), "depths": (2,), "steps": 100},
    flags={"steps": "of each training"},
    unwritten=["courses"],
)
if __name__ == "__main__":
    STUDY.main()
