"""Whether coupled L2 decay cuts the latents of a nonlinear autoencoder where the formula for linear ones says."""

import itertools
from collections.abc import Callable, Sequence

import study
import torch
from figures import curves, finish, panels
from linear_autoencoders import DIM, FEATURES, Stack
from matplotlib.figure import Figure
from tables import Row, Rows, share, spread, summary, values, where
from torch import nn

from lightning_rank import LinearBottleneck
from lightning_rank.functional import (
    effective_rank,
    principal_deviations,
    row_moments,
    variance_cutoff,
    weight_decay_for_variance_cutoff,
)
from rank_trainer.autoencoders import Autoencoder, linear_autoencoder, mlp_autoencoder
from rank_trainer.data import digits

SEEDS = (60, 61, 62)
DEPTHS = (0, 2, 4, 8)
CUTOFFS = (0.0, 0.01, 0.03, 0.1, 0.3)
NETWORKS: dict[str, tuple[Callable[[], Autoencoder], int]] = {  # with the number of weights beside the linear layers
    "linear": (linear_autoencoder, 2),
    "MLP": (lambda: mlp_autoencoder(FEATURES, 128, DIM), 6),
}


def train(network: str, cutoff: float, depth: int, steps: int) -> list[Row]:
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


def measure(cutoffs: Sequence[float] = CUTOFFS, depths: Sequence[int] = DEPTHS, steps: int = 3000) -> study.Tables:
    """Train both networks with the decay of all cutoffs, at all depths."""
    jobs = study.progress(itertools.product(NETWORKS, cutoffs, depths))
    return {"runs": [row for network, cutoff, depth in jobs for row in train(network, cutoff, depth, steps)]}


def decayed(rows: Rows, network: str) -> list[Row]:
    """The runs of a network that had decay."""
    return [row for row in where(rows, network=network) if row["cutoff"] > 0]


def agree(rows: Rows, network: str, key: str = "predicted", off: int = 2) -> str:
    """How many runs with decay end within so many directions of a prediction, and how many below and above."""
    errors = [row["found"] - row[key] for row in decayed(rows, network)]
    inside, below = (sum(map(test, errors)) for test in (lambda error: abs(error) <= off, lambda error: error < -off))
    return f"{inside} of {len(errors)} runs, below in {below} and above in {len(errors) - inside - below}"


def judged(rows: Rows, key: str = "predicted") -> str:
    """Whether the MLP ends within 2 directions of the prediction: always, in three of four runs, or less often."""
    some = decayed(rows, "MLP")
    right = sum(abs(row["found"] - row[key]) <= 2 for row in some) / len(some)
    return study.judged(right == 1, right >= 0.75).replace("holds", "carries over").replace("hold", "carry over")


def verdict(runs: Rows) -> str:
    """What the report says of it."""
    off = {network: [int(row["found"] - row["predicted"]) for row in decayed(runs, network)] for network in NETWORKS}
    at_largest = where(runs, network="MLP", cutoff=max(values(runs, "cutoff")))
    with_decay, without = (
        share(some, lambda row: row["found"] == row["found_halfway"])
        for some in (decayed(runs, "MLP"), where(runs, network="MLP", cutoff=0))
    )
    return f"""**Verdict: the prediction {judged(runs)}.** With decay the ranks found differ from the predicted ones
by {min(off["linear"]):+d} to {max(off["linear"]):+d} in the linear autoencoder, and by {min(off["MLP"]):+d} to
{max(off["MLP"]):+d} in the MLP, where the largest cutoff predicts {spread(values(at_largest, "predicted"))} and leaves
{spread(values(at_largest, "found"))}. With each of the MLP's weights counted as a factor it
{judged(runs, "predicted_all_weights")}. The rank of the MLP was the same after half of the steps in
{with_decay} runs with decay and in {without} without."""


def picture(runs: Rows) -> Figure:
    """Rank found against rank predicted, a panel a network, a dot a run."""
    beside = [row | {"x": row["predicted"] + 0.5 * (DEPTHS.index(row["depth"]) - 1.5)} for row in runs]
    figure, grid = panels(beside, "network", size=(9.6, 4.8), sharex=True, sharey=True)
    for axes, some in grid:
        axes.plot([0, DIM], [0, DIM], color="black", linewidth=0.8, linestyle=":")
        curves(axes, some, "x", "found", by="depth", style="", label="depth {}")
    return finish(figure, "directions of the data above the cutoff", "numerical rank of the latents")


def text(runs: Rows, verdict: str, steps: int) -> str:
    """The report."""
    keys = {"network": "network", "cutoff": "cutoff", "depth": "depth"}
    columns = {
        "decay": "weight_decay",
        "predicted": "predicted",
        "predicted, all weights counted": "predicted_all_weights",
        "rank found": "found",
        "rank halfway": "found_halfway",
        "effective rank": "effective_rank",
        "held-out error": "error",
    }
    return f"""scikit-learn's digits (8x8, in [0, 1]), an eighth held out; a linear autoencoder 64-32-64, and the MLP
64-128-128-32 and back, both with biases, undecayed; orthogonal layers of gain 1 at the learning rate over depth;
`torch.optim.Adam` at 1e-3 with the coupled decay that
[`weight_decay_for_variance_cutoff`](../../../lightning_rank/functional/weight_decay.py) gives for a cutoff, on all
weights; batches of 128, squared error summed over pixels, {steps:,} steps. Predicted: eigenvalues of the
covariance of the training images above the cutoff, the width of the latents, {DIM}, at most; and the same if each of
the MLP's weights is counted as a factor. Found: directions of the held-out latents with more than 1e-3 of the largest
*variance*. Medians over seeds {", ".join(map(str, SEEDS))} (and the ends, where they differ).

- The linear autoencoder, where the formula is derived: within 2 directions of the prediction in
  {agree(runs, "linear")}.
- The MLP: within 2 in {agree(runs, "MLP")}. With each of its weights counted as a factor, within 2 in
  {agree(runs, "MLP", "predicted_all_weights")}.

{verdict}

{summary(runs, keys, columns)}

![Rank found against rank predicted](ranks.png)"""


STUDY = study.Study(
    name="l2_nonlinear",
    title="Coupled L2 decay and nonlinear autoencoders",
    measure=measure,
    text=text,
    verdict=verdict,
    figures={"ranks.png": picture},
    quick={"cutoffs": (0.0, 0.1), "depths": (2,), "steps": 50},
    flags={"steps": "of each training"},
)
if __name__ == "__main__":
    STUDY.main()
