"""Whether the size of an update of the composed matrix depends on the number of layers.

``--quick`` takes fewer depths and seeds and writes nothing.
"""

import argparse
import itertools
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import report
import torch
from matplotlib.figure import Figure
from torch import nn
from torch.optim import Optimizer

from lightning_rank import LinearBottleneck, depth_scaled_param_groups
from lightning_rank.functional import inverse_depth

sys.path.append(str(Path(__file__).parents[1] / "examples"))
from rank_trainer.report.plots import COLOURS

NAME = "depth_coordinate_check"
DIM, STEPS = 64, 10
SEEDS = (30, 31, 32)
DEPTHS = (1, 2, 4, 8, 16, 32)
OPTIMIZERS: dict[str, tuple[float, Callable[[Any], Optimizer]]] = {  # with a learning rate at which ten steps are small
    "SGD": (1e-4, torch.optim.SGD),
    "SGD, momentum 0.9": (1e-5, lambda groups: torch.optim.SGD(groups, momentum=0.9)),
    "Adam": (1e-5, torch.optim.Adam),
    "AdamW": (1e-5, lambda groups: torch.optim.AdamW(groups, weight_decay=0.01)),
    "RMSprop": (1e-6, torch.optim.RMSprop),
}
if hasattr(torch.optim, "Muon"):
    OPTIMIZERS["Muon"] = (1e-5, lambda groups: torch.optim.Muon(groups, weight_decay=0.0))
MULTIPLIERS = {"lr / depth": inverse_depth, "one lr": lambda depth: 1.0}
#: Those that the rule is derived for, and those that normalize each entry.
EXACT, NORMALIZED = ("SGD", "SGD, momentum 0.9", "Muon"), ("Adam", "AdamW", "RMSprop")
#: Factors from the change at depth 1, either way, up to which the rule "holds", and "holds within limits".
HOLDS, WITHIN_LIMITS = 1.01, 1.3


def changes(optimizer: str, depth: int, multiplier: float, gain: float, seed: int, steps: int) -> list[float]:
    r"""Frobenius norm of the change of ``LinearBottleneck.weight`` since the start, after each step.

    The loss is ``|W x - y|^2`` over 256 rows, ``y`` a random linear map of ``x``, the same at every depth; the start is
    the same composed matrix, too.
    """
    torch.manual_seed(seed)
    rows = torch.randn(256, DIM, dtype=torch.float64)
    targets = rows @ torch.randn(DIM, DIM, dtype=torch.float64) / DIM**0.5
    start = nn.init.orthogonal_(torch.empty(DIM, DIM, dtype=torch.float64))
    bottleneck = LinearBottleneck(DIM, depth, gain=gain, dtype=torch.float64)
    with torch.no_grad():  # the first layer makes up for the others
        first = bottleneck.layers[0].weight
        first.copy_(first @ torch.linalg.solve(bottleneck.weight, gain * start))
    lr, make = OPTIMIZERS[optimizer]
    stepper = make(depth_scaled_param_groups(bottleneck, lr, multiplier=multiplier))
    before, sizes = bottleneck.weight.detach(), []
    for _ in range(steps):
        loss = (bottleneck(rows) - targets).square().sum(1).mean()
        stepper.zero_grad()
        loss.backward()
        stepper.step()
        sizes.append((bottleneck.weight.detach() - before).norm().item())
    return sizes


def check(depths: tuple[int, ...], seeds: tuple[int, ...]) -> list[dict[str, Any]]:
    """The size of the change over that at depth 1, after the first and after the last step, from gain 1."""
    rows = []
    for optimizer, (scaling, multiplier), seed in itertools.product(OPTIMIZERS, MULTIPLIERS.items(), seeds):
        single = changes(optimizer, 1, 1.0, 1.0, seed, STEPS)
        for depth in depths:
            sizes = changes(optimizer, depth, multiplier(depth), 1.0, seed, STEPS)
            rows.append({"optimizer": optimizer, "scaling": scaling, "depth": depth, "seed": seed})
            rows[-1] |= {"one_step": sizes[0] / single[0], f"{STEPS}_steps": sizes[-1] / single[-1]}
    return rows


def checked(rows: list[dict[str, Any]]) -> str:
    """Change over that at depth 1, after one step: a row for each optimizer and scaling, a column for each depth."""
    depths = list(dict.fromkeys(row["depth"] for row in rows))
    table = []
    for key, optimizer, scaling in itertools.product(("one_step", f"{STEPS}_steps"), OPTIMIZERS, MULTIPLIERS):
        some = [row for row in rows if (row["optimizer"], row["scaling"]) == (optimizer, scaling)]
        found = [report.spread([row[key] for row in some if row["depth"] == depth]) for depth in depths]
        table.append([optimizer, scaling, key.replace("_", " "), *found])
    return report.markdown(["optimizer", "learning rate", "after", *(f"depth {depth}" for depth in depths)], table)


def judged(rows: list[dict[str, Any]], optimizers: Sequence[str]) -> tuple[str, list[float]]:
    """Whether one step at the learning rate over depth is as large as at depth 1, and how large it is."""
    sizes = [row["one_step"] for row in rows if row["scaling"] == "lr / depth" and row["optimizer"] in optimizers]

    def all_within(factor: float) -> bool:
        return all(1 / factor <= size <= factor for size in sizes)

    verdict = "holds" if all_within(HOLDS) else "holds within limits" if all_within(WITHIN_LIMITS) else "does not hold"
    return verdict, sizes


def verdict(rows: list[dict[str, Any]]) -> str:
    """What the report says of it."""
    (exact, exact_sizes), (normalized, normalized_sizes) = judged(rows, EXACT), judged(rows, NORMALIZED)
    highest = max(row["one_step"] for row in rows if row["scaling"] == "one lr")
    return f"""**Verdict: {exact}**, with plain 1 / N and for one step: {min(exact_sizes):.3f} to {max(exact_sizes):.3f}
for SGD, with and without momentum, and Muon; **{normalized}** for Adam, AdamW and RMSprop,
{min(normalized_sizes):.2f} to {max(normalized_sizes):.2f}, to depth {max(row["depth"] for row in rows)}. With one
learning rate for all layers the change is up to {highest:.0f} times that of one layer. (Holds: within
{100 * (HOLDS - 1):.0f} % of it; within limits: within a factor of {WITHIN_LIMITS}.)"""


def picture(rows: list[dict[str, Any]]) -> Figure:
    """Size of the change against depth: flat with the scaled learning rate, growing without."""
    figure = Figure(figsize=(10, 4.2), dpi=130, layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for axes, scaling in zip(panels, MULTIPLIERS, strict=True):
        for optimizer, colour, marker in zip(OPTIMIZERS, COLOURS, "osv^Dx", strict=False):
            some = [row for row in rows if (row["optimizer"], row["scaling"]) == (optimizer, scaling)]
            for key, line in (("one_step", "-"), (f"{STEPS}_steps", ":")):
                middle = [median([r[key] for r in some if r["depth"] == depth]) for depth in DEPTHS]
                label = optimizer if key == "one_step" else None
                axes.plot(DEPTHS, middle, line, color=colour, marker=marker, markersize=4, label=label)
        axes.set(xscale="log", yscale="log", xlabel="linear layers", xticks=DEPTHS, xticklabels=DEPTHS, title=scaling)
        axes.minorticks_off()
        axes.grid(alpha=0.3)
    panels[0].set(ylabel="change of the composed matrix / that of one layer", yticks=(0.5, 1, 2, 4, 8, 16, 32))
    panels[0].set_yticklabels(["0.5", "1", "2", "4", "8", "16", "32"])
    panels[1].legend(frameon=False)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer depths and seeds, and nothing is written")
    args = parser.parse_args()
    torch.set_num_threads(1)
    depths, seeds = ((1, 4), SEEDS[:1]) if args.quick else (DEPTHS, SEEDS)
    rows = check(depths, seeds)
    if args.quick:
        print(checked(rows))
        return
    body = f"""How far one step, and {STEPS} steps, move `LinearBottleneck.weight`, over how far the same optimizer
moves a single layer. Squared error of a linear regression on 256 rows of 64 features, in float64, from the same
composed matrix at every depth, orthogonal, of gain 1. The median of seeds {", ".join(map(str, SEEDS))} (and the ends,
where they differ).

{verdict(rows)}

![Change against depth, with lr / depth and with one lr](flat.png)

One step as solid lines, {STEPS} steps dotted.

{checked(rows)}

Why the multiplier is not corrected by the gain, too: [gain_corrected_rate](../gain_corrected_rate/README.md).

Every figure: [updates.csv](updates.csv)."""
    print(body)
    report.write_csv(NAME, "updates.csv", rows)
    picture(rows).savefig(report.RESULTS / NAME / "flat.png")
    print(report.write(NAME, "Updates that do not depend on depth", body))


if __name__ == "__main__":
    main()
