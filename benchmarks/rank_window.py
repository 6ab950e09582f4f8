"""How long a linear autoencoder keeps the rank of its data without coupled decay, and whether a rule stops it in time.

``--quick`` trains fewer models for fewer steps and writes nothing.
"""

import argparse
import functools
import itertools
import math
import time
from collections.abc import Sequence
from statistics import median
from typing import Any, NamedTuple

import report
import torch
from linear_autoencoders import Cell, Stack
from matplotlib.figure import Figure
from torch.optim import SGD, Adam, AdamW
from torch.optim.lr_scheduler import CosineAnnealingLR

from rank_trainer.report.plots import COLOURS

NAME = "rank_window"
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


def train(name: str, depth: int, ranks: Sequence[int], steps: int) -> list[dict[str, Any]]:
    """Train on all ranks and seeds: a row for each, with rank and held-out error at every check."""
    setting = SETTINGS[name]
    cells = [
        Cell(rank, depth, seed, noise=setting.noise, bias=setting.bias)
        for rank, seed in itertools.product(ranks, SEEDS)
    ]
    stack = Stack.of(cells)
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
        {"setting": name, **row, "ranks": ranks_of_cell, "errors": errors_of_cell}
        for row, ranks_of_cell, errors_of_cell in zip(stack.measure(cells), found, error, strict=True)
    ]


def window(row: dict[str, Any]) -> tuple[float, float]:
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


def stopped(row: dict[str, Any], checks: int = 5, improvement: float = 0.03) -> int | None:
    """Rank once it has been the same, below full width, at so many checks, and the error has improved by less."""
    ranks, errors = row["ranks"], row["errors"]
    for end in range(checks, len(ranks) + 1):
        plateau = set(ranks[end - checks : end])
        if (
            len(plateau) == 1
            and plateau < set(range(1, 32))
            and errors[end - 1] > (1 - improvement) * errors[end - checks]
        ):
            return ranks[end - 1]
    return None


def windows(rows: list[dict[str, Any]], steps: int) -> str:
    """When the rank comes and goes, by setting, rank and depth: medians over seeds, and the ends."""
    table = []
    for name, rank in dict.fromkeys((row["setting"], row["rank"]) for row in rows):
        line: list[object] = [name, rank]
        for depth in dict.fromkeys(row["depth"] for row in rows):
            some = [row for row in rows if (row["setting"], row["rank"], row["depth"]) == (name, rank, depth)]
            starts, ends = zip(*map(window, some), strict=True)
            line.append(f"{_told(starts)} to {_told(ends, steps)}")
            line.append(report.spread([row["found"] for row in some]))
        table.append(line)
    columns = [
        f"depth {d}: {what}"
        for d in dict.fromkeys(row["depth"] for row in rows)
        for what in ("window", "rank at the end")
    ]
    return report.markdown(["setting", "rank", *columns], table)


def stops(rows: list[dict[str, Any]]) -> str:
    """What the stopping rule gives for each setting."""
    table = []
    for name in dict.fromkeys(row["setting"] for row in rows):
        some = [row for row in rows if row["setting"] == name]
        ranks = [stopped(row) for row in some]
        right = sum(rank == row["rank"] for rank, row in zip(ranks, some, strict=True))
        table.append([name, f"{right} of {len(some)}", ranks.count(None)])
    return report.markdown(["setting", "stopped at the rank of the data", "not stopped"], table)


def judged(rows: list[dict[str, Any]], name: str = "Adam") -> str:
    """Whether runs keep the rank of their data: to the end, for a time, or not even that."""
    some = [row for row in rows if row["setting"] == name]
    if all(row["window_ends"] == math.inf and row["found"] == row["rank"] for row in some):
        return "holds"
    return "holds within limits" if all(row["window_starts"] < math.inf for row in some) else "does not hold"


def verdict(rows: list[dict[str, Any]], steps: int) -> str:
    """What the report says of the window."""
    adam = [row for row in rows if row["setting"] == "Adam"]
    found = judged(rows)
    lengths = []
    for name in dict.fromkeys(row["setting"] for row in rows):
        some = [row for row in rows if row["setting"] == name]
        ends = [median([row["window_ends"] for row in some if row["depth"] == depth]) for depth in _depths(rows)]
        lengths.append(f"{name}: {' / '.join(_told([end], steps) for end in ends)}")
    return f"""**Verdict: {found}**{", of time" if found == "holds within limits" else ""}. Under Adam
{sum(row["window_starts"] < math.inf for row in adam)} of {len(adam)} runs come to the rank of their data, and
{sum(row["window_ends"] < math.inf for row in adam)} leave it again. The median step at which the window ends, over
ranks and seeds, at depths {" / ".join(map(str, _depths(rows)))}: {"; ".join(lengths)}."""


def stop_judged(rows: list[dict[str, Any]]) -> str:
    """Whether the rule stops all runs at the rank of their data, those on clean data only, or not even them."""
    right = {
        name: [row["stopped_at_rank"] == row["rank"] for row in rows if row["setting"] == name]
        for name in ("Adam", NOISY)
    }
    if all(right["Adam"] + right[NOISY]):
        return "holds"
    return "holds within limits" if all(right["Adam"]) else "does not hold"


def stop_verdict(rows: list[dict[str, Any]]) -> str:
    """What the report says of the stopping rule."""
    found = stop_judged(rows)
    told = []
    for name in ("Adam", NOISY):
        some = [row["stopped_at_rank"] == row["rank"] for row in rows if row["setting"] == name]
        told.append(f"{sum(some)} of {len(some)}")
    shipped = """ Not shipped: it sees a plateau, and a plateau is not the truth. Coupled decay holds the rank in those
same circumstances, and `EarlyStopping` can watch `rank/numerical` for who wants to stop at it."""
    return f"""**Verdict: {found}**{", of little noise" if found == "holds within limits" else ""}. Where all is as it
should be (no biases, little noise) the rule is right in {told[0]} under Adam; with biases and more noise in
{told[1]}.{shipped if found != "holds" else ""}"""


def summarized(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The runs without their course: when the window opens and closes, and where the rule would have stopped."""
    return [
        {key: value for key, value in row.items() if key not in ("ranks", "errors")}
        | dict(zip(("window_starts", "window_ends"), window(row), strict=True))
        | {"stopped_at_rank": stopped(row)}
        for row in rows
    ]


def picture(rows: list[dict[str, Any]]) -> Figure:
    """Rank against step, a panel a setting."""
    figure = Figure(figsize=(12, 6.6), dpi=120, layout="constrained")
    panels = figure.subplots(2, 3, sharex=True, sharey=True)
    styles = dict(zip(DEPTHS, (":", "-.", "--", "-"), strict=True))
    for axes, name in zip(panels.flat, SETTINGS, strict=True):
        for row in rows:
            if row["setting"] == name and row["seed"] == SEEDS[0]:
                steps = [EVERY * index for index in range(1, len(row["ranks"]) + 1)]
                colour = COLOURS[RANKS.index(row["rank"])]
                label = f"rank {row['rank']}, depth {row['depth']}"
                axes.plot(steps, row["ranks"], styles[row["depth"]], color=colour, linewidth=1.4, label=label)
        for rank in RANKS:
            axes.axhline(rank, color="black", linewidth=0.5, linestyle=":")
        axes.set_title(name, fontsize=10)
        axes.set_xscale("log")
    for axes in panels[1]:
        axes.set_xlabel("step")
    for axes in panels[:, 0]:
        axes.set_ylabel("numerical rank")
    handles, labels = panels[0, 0].get_legend_handles_labels()
    order = sorted(range(len(labels)), key=lambda index: (labels[index].split(",")[0].zfill(8), index))
    figure.legend(
        [handles[i] for i in order], [labels[i] for i in order], loc="outside lower center", ncols=6, fontsize=8
    )
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer models and steps, and nothing is written")
    parser.add_argument("--steps", type=int, default=20_000)
    args = parser.parse_args()
    torch.set_num_threads(1)
    start, steps = time.perf_counter(), args.steps
    if args.quick:
        rows = [row for name in SETTINGS for row in train(name, 2, (4,), 100)]
        print(windows(rows, 100), stops(rows), sep="\n\n")
        return
    rows = []
    for name, depth in itertools.product(SETTINGS, DEPTHS):
        rows += train(name, depth, RANKS, steps)
        print(f"{name}, depth {depth}: {time.perf_counter() - start:.0f} s", flush=True)
    lasting = {
        name: [window(row)[1] == math.inf and row["found"] == row["rank"] for row in rows if row["setting"] == name]
        for name in SETTINGS
    }
    runs = summarized(rows)
    body = f"""Ours as in [synthetic_recovery](../synthetic_recovery/README.md), orthogonal layers of gain 0.03 at the
learning rate over depth, trained on for {steps:,} steps. The rank of the held-out latents (more than 1e-3 of the
largest *variance*) is checked every {EVERY} steps. The window is the longest time at the rank of the data, from its
first to its last check; the median over seeds {", ".join(map(str, SEEDS))} (and the ends, where they differ). Adam
and AdamW at 1e-3. Their weight decay, where there is any, is decoupled; for coupled decay see
[rank_fixed_point](../rank_fixed_point/README.md).

{windows(rows, steps)}

Still at the rank of the data at the end:
{"; ".join(f"{name}: {sum(lasts)} of {len(lasts)}" for name, lasts in lasting.items())}.

{verdict(runs, steps)}

![Rank against step](window.png)

One seed; the others are in [windows.csv](windows.csv).

## A rule to stop in time

Stop when the rank has been the same at 5 checks, {EVERY} steps apart, and below full width, and the held-out error
has improved by less than 3 % over them. Where it would have stopped these runs:

{stops(rows)}

{stop_verdict(runs)}

All of it took {(time.perf_counter() - start) / 60:.0f} minutes."""
    print(body)
    report.write_csv(NAME, "windows.csv", runs)
    picture(rows).savefig(report.RESULTS / NAME / "window.png")
    print(report.write(NAME, "The window of the rank", body))


def _depths(rows: list[dict[str, Any]]) -> list[int]:
    return list(dict.fromkeys(row["depth"] for row in rows))


def _told(values: Sequence[float], end: int | None = None) -> str:
    """Steps; an infinite one is the end, or never came."""
    low, middle, high = (
        f"{x:,.0f}" if x < math.inf else (f"{end:,}+" if end else "never")
        for x in (min(values), median(values), max(values))
    )
    return middle if low == high else f"{middle} ({low} to {high})"


if __name__ == "__main__":
    main()
