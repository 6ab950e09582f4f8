"""Whether the size of an update of the composed matrix depends on the number of layers."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import study
import torch
from figures import curves, finish, panels
from matplotlib.figure import Figure
from tables import Row, Rows, different, spread, summary, values, where
from torch import nn
from torch.optim import Optimizer

from lightning_rank import LinearBottleneck, depth_scaled_param_groups
from lightning_rank.functional import inverse_depth

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


def measure(depths: Sequence[int] = DEPTHS, seeds: Sequence[int] = SEEDS) -> study.Tables:
    """The size of the change over that at depth 1, after the first and after the last step, from gain 1."""
    rows: list[Row] = []
    for optimizer, (scaling, multiplier), seed in itertools.product(OPTIMIZERS, MULTIPLIERS.items(), seeds):
        single = changes(optimizer, 1, 1.0, 1.0, seed, STEPS)
        for depth in depths:
            sizes = changes(optimizer, depth, multiplier(depth), 1.0, seed, STEPS)
            rows.append({"optimizer": optimizer, "scaling": scaling, "depth": depth, "seed": seed})
            rows[-1] |= {"one_step": sizes[0] / single[0], f"{STEPS}_steps": sizes[-1] / single[-1]}
    return {"updates": rows}


def judged(rows: Rows, optimizers: Sequence[str]) -> tuple[str, list[float]]:
    """Whether one step at the learning rate over depth is as large as at depth 1, and how large it is."""
    sizes = [row["one_step"] for row in where(rows, scaling="lr / depth") if row["optimizer"] in optimizers]
    within = [all(1 / factor <= size <= factor for size in sizes) for factor in (HOLDS, WITHIN_LIMITS)]
    return study.judged(*within), sizes


def verdict(updates: Rows) -> str:
    """What the report says of it."""
    unscaled = values(updates, "one_step", scaling="one lr")
    (exact, exact_sizes), (normalized, normalized_sizes) = judged(updates, EXACT), judged(updates, NORMALIZED)
    return f"""**Verdict: {exact}**, with plain 1 / N and for one step: {min(exact_sizes):.3f} to {max(exact_sizes):.3f}
for SGD, with and without momentum, and Muon; **{normalized}** for Adam, AdamW and RMSprop,
{min(normalized_sizes):.2f} to {max(normalized_sizes):.2f}, to depth {max(values(updates, "depth"))}. With one
learning rate for all layers the change is up to {max(unscaled):.0f} times that of one
layer. (Holds: within {100 * (HOLDS - 1):.0f} % of it; within limits: within a factor of {WITHIN_LIMITS}.)"""


def changed(rows: Rows, steps: str) -> str:
    """Change over that at depth 1, a column a depth."""
    columns = {
        f"depth {depth}": lambda some, depth=depth: spread(values(some, steps, depth=depth))
        for depth in different(rows, "depth")
    }
    return summary(rows, {"optimizer": f"after {steps.replace('_', ' ')}", "scaling": "learning rate"}, columns)


def picture(updates: Rows) -> Figure:
    """Size of the change against depth: flat with the scaled learning rate, growing without."""
    figure, grid = panels(updates, "scaling", size=(10, 4.6), sharey=True)
    for axes, some in grid:
        curves(axes, some, "depth", "one_step", by="optimizer")
        curves(axes, some, "depth", f"{STEPS}_steps", by="optimizer", style=":", label="_{}")
        axes.set(yscale="log", yticks=DEPTHS, yticklabels=DEPTHS)
    return finish(
        figure, "linear layers", "change of the composed matrix / that of one layer", different(updates, "depth")
    )


def text(updates: Rows, verdict: str, seeds: Sequence[int]) -> str:
    """The report."""
    return f"""How far one step, and {STEPS} steps, move `LinearBottleneck.weight`, over how far the same optimizer
moves a single layer. Squared error of a linear regression on 256 rows of 64 features, in float64, from the same
composed matrix at every depth, orthogonal, of gain 1. The median of seeds {", ".join(map(str, seeds))} (and the ends,
where they differ).

{verdict}

![Change against depth, with lr / depth and with one lr](flat.png)

One step as solid lines, {STEPS} steps dotted.

{changed(updates, "one_step")}

{changed(updates, f"{STEPS}_steps")}

Why the multiplier is not corrected by the gain, too: [gain_corrected_rate](../gain_corrected_rate/README.md)."""


STUDY = study.Study(
    name="depth_coordinate_check",
    title="Updates that do not depend on depth",
    measure=measure,
    text=text,
    verdict=verdict,
    figures={"flat.png": picture},
    quick={"depths": (1, 4), "seeds": SEEDS[:1]},
)
if __name__ == "__main__":
    STUDY.main()
