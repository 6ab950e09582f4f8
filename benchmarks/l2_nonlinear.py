"""Whether coupled L2 decay cuts the latents of a nonlinear autoencoder where the formula for linear ones says.

``--quick`` trains fewer models for fewer steps and writes nothing.
"""

import argparse
import itertools
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import report
import torch
from linear_autoencoders import DIM, FEATURES, Stack
from matplotlib.figure import Figure
from torch import nn

from lightning_rank import LinearBottleneck
from lightning_rank.functional import (
    effective_rank,
    principal_deviations,
    row_moments,
    variance_cutoff,
    weight_decay_for_variance_cutoff,
)

sys.path.append(str(Path(__file__).parents[1] / "examples"))
from rank_trainer.autoencoders import Autoencoder, linear_autoencoder, mlp_autoencoder
from rank_trainer.data import digits
from rank_trainer.report.plots import COLOURS

NAME = "l2_nonlinear"
SEEDS = (60, 61, 62)
DEPTHS = (0, 2, 4, 8)
CUTOFFS = (0.0, 0.01, 0.03, 0.1, 0.3)
NETWORKS: dict[str, tuple[Callable[[], Autoencoder], int]] = {  # with the number of weights beside the linear layers
    "linear": (linear_autoencoder, 2),
    "MLP": (lambda: mlp_autoencoder(FEATURES, 128, DIM), 6),
}


def train(network: str, depth: int, cutoff: float, steps: int) -> list[dict[str, Any]]:
    """Train with the decay of a cutoff, on digits: a row a seed."""
    make_autoencoder, weights = NETWORKS[network]
    data = digits()
    models = []
    for seed in SEEDS:
        torch.manual_seed(seed)
        autoencoder = make_autoencoder()
        models.append(nn.Sequential(autoencoder.encoder, LinearBottleneck(DIM, depth, gain=1.0), autoencoder.decoder))
    train_rows, held_out = (part.tensors[0].expand(len(SEEDS), -1, -1) for part in (data.train, data.val))
    stack = Stack(models, train_rows, held_out)
    decay = weight_decay_for_variance_cutoff(cutoff, depth)
    optimizer = torch.optim.Adam(stack.param_groups(1e-3, weight_decay=decay))
    (halfway,) = [stack.ranks() for step in stack.train(optimizer, steps) if step == steps // 2]
    with torch.no_grad():
        errors = stack.losses(held_out)
    variances = principal_deviations(row_moments(data.train.tensors[0])).square()
    # What the formula says if every weight matrix counts as a factor.
    all_weights = variance_cutoff(decay, depth + weights - 2)
    settings = {"network": network, "depth": depth, "cutoff": cutoff, "weight_decay": decay}
    settings |= {"predicted": min(DIM, (variances > cutoff).sum().item())}
    settings |= {"predicted_all_weights": min(DIM, (variances > all_weights).sum().item())}
    return [
        settings
        | {"seed": seed, "found_halfway": halfway[k].item(), "found": stack.ranks()[k].item()}
        | {"effective_rank": effective_rank(stack.deviations()[k]).item(), "error": errors[k].item()}
        for k, seed in enumerate(SEEDS)
    ]


def table(rows: list[dict[str, Any]]) -> str:
    """Ranks predicted and found: a row for each network, cutoff and depth."""
    lines = []
    for network, cutoff, depth in dict.fromkeys((row["network"], row["cutoff"], row["depth"]) for row in rows):
        some = [row for row in rows if (row["network"], row["cutoff"], row["depth"]) == (network, cutoff, depth)]
        found = [
            report.spread([row[key] for row in some]) for key in ("found", "found_halfway", "effective_rank", "error")
        ]
        predicted = some[0]["predicted"], some[0]["predicted_all_weights"]
        lines.append([network, cutoff, depth, f"{some[0]['weight_decay']:.3g}", *predicted, *found])
    header = ["network", "cutoff", "depth", "decay", "predicted", "predicted, all weights counted", "rank found"]
    return report.markdown([*header, "rank halfway", "effective rank", "held-out error"], lines)


def picture(rows: list[dict[str, Any]]) -> Figure:
    """Rank found against rank predicted, a panel a network, a dot a run."""
    figure = Figure(figsize=(9.6, 4.4), dpi=130, layout="constrained")
    panels = figure.subplots(1, len(NETWORKS), sharex=True, sharey=True)
    for axes, network in zip(panels, NETWORKS, strict=True):
        axes.plot([0, DIM], [0, DIM], color="black", linewidth=0.8, linestyle=":")
        for shift, (depth, colour) in enumerate(zip(DEPTHS, COLOURS, strict=False)):
            some = [row for row in rows if (row["network"], row["depth"]) == (network, depth)]
            xs = [row["predicted"] + 0.5 * (shift - 1.5) for row in some]
            axes.plot(xs, [row["found"] for row in some], "o", color=colour, markersize=4, label=f"depth {depth}")
        axes.set(xlabel="directions of the data above the cutoff", title=network, ylim=(-1, 33))
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("numerical rank of the latents")
    panels[0].legend(frameon=False)
    return figure


def agree(rows: list[dict[str, Any]], network: str, key: str = "predicted", off: int = 2) -> str:
    """How many runs with decay end within so many directions of a prediction, and how many below and above."""
    errors = [row["found"] - row[key] for row in rows if row["network"] == network and row["cutoff"] > 0]
    inside, below = (sum(map(test, errors)) for test in (lambda error: abs(error) <= off, lambda error: error < -off))
    return f"{inside} of {len(errors)} runs, below in {below} and above in {len(errors) - inside - below}"


def ends(rows: list[dict[str, Any]], network: str) -> str:
    """By how many directions runs with decay end beside the prediction, at the least and at the most."""
    errors = [int(row["found"] - row["predicted"]) for row in rows if row["network"] == network and row["cutoff"] > 0]
    return f"{min(errors):+d} to {max(errors):+d}"


def steady(rows: list[dict[str, Any]], decayed: bool) -> str:
    """In how many runs of the MLP, with decay or without, the rank did not change in the second half."""
    some = [row for row in rows if row["network"] == "MLP" and (row["cutoff"] > 0) is decayed]
    return f"{sum(row['found'] == row['found_halfway'] for row in some)} of {len(some)}"


def judged(rows: list[dict[str, Any]], key: str = "predicted") -> str:
    """Whether the MLP ends within 2 directions of the prediction: always, in three of four runs, or less often."""
    some = [row for row in rows if row["network"] == "MLP" and row["cutoff"] > 0]
    share = sum(abs(row["found"] - row[key]) <= 2 for row in some) / len(some)
    if share == 1:
        return "carries over"
    return "carries over within limits" if share >= 0.75 else "does not carry over"


def verdict(rows: list[dict[str, Any]]) -> str:
    """What the report says of it."""
    largest = max(row["cutoff"] for row in rows)
    at_largest = [row for row in rows if row["network"] == "MLP" and row["cutoff"] == largest]
    return f"""**Verdict: the prediction {judged(rows)}.** With decay the ranks found differ from the predicted ones
by {ends(rows, "linear")} in the linear autoencoder, and by {ends(rows, "MLP")} in the MLP, where the largest
cutoff predicts {report.spread([row["predicted"] for row in at_largest])} and leaves
{report.spread([row["found"] for row in at_largest])}. With each of the MLP's weights counted as a factor it
{judged(rows, "predicted_all_weights")}. The rank of the MLP was the same after half of the steps in
{steady(rows, True)} runs with decay and in {steady(rows, False)} without."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer models and steps, and nothing is written")
    parser.add_argument("--steps", type=int, default=3000)
    args = parser.parse_args()
    torch.set_num_threads(1)
    start = time.perf_counter()
    if args.quick:
        print(table([row for network in NETWORKS for row in train(network, 2, 0.1, 50)]))
        return
    rows = []
    for network, cutoff, depth in itertools.product(NETWORKS, CUTOFFS, DEPTHS):
        rows += train(network, depth, cutoff, args.steps)
        print(network, cutoff, depth, f"{time.perf_counter() - start:.0f} s", flush=True)
    body = f"""scikit-learn's digits (8x8, in [0, 1]), an eighth held out; a linear autoencoder 64-32-64, and the MLP
64-128-128-32 and back, both with biases, undecayed; orthogonal layers of gain 1 at the learning rate over depth;
`torch.optim.Adam` at 1e-3 with the coupled decay that
[`weight_decay_for_variance_cutoff`](../../../lightning_rank/functional/weight_decay.py) gives for a cutoff, on all
weights; batches of 128, squared error summed over pixels, {args.steps:,} steps. Predicted: eigenvalues of the
covariance of the training images above the cutoff, the width of the latents, {DIM}, at most; and the same if each of
the MLP's weights is counted as a factor. Found: directions of the held-out latents with more than 1e-3 of the largest
*variance*. Medians over seeds {", ".join(map(str, SEEDS))} (and the ends, where they differ).

- The linear autoencoder, where the formula is derived: within 2 directions of the prediction in
  {agree(rows, "linear")}.
- The MLP: within 2 in {agree(rows, "MLP")}. With each of its weights counted as a factor, within 2 in
  {agree(rows, "MLP", "predicted_all_weights")}.

{verdict(rows)}

{table(rows)}

![Rank found against rank predicted](ranks.png)

Every run: [runs.csv](runs.csv). All of it took {(time.perf_counter() - start) / 60:.0f} minutes."""
    print(body)
    report.write_csv(NAME, "runs.csv", rows)
    picture(rows).savefig(report.RESULTS / NAME / "ranks.png")
    print(report.write(NAME, "Coupled L2 decay and nonlinear autoencoders", body))


if __name__ == "__main__":
    main()
