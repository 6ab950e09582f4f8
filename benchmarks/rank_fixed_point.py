"""Whether coupled L2 decay makes the rank of a linear autoencoder a fixed point, and where it cuts."""

import itertools
from collections.abc import Sequence

import study
import torch
from figures import curves, finish
from linear_autoencoders import Stack, Trial
from matplotlib.figure import Figure
from tables import Row, Rows, different, ends, share, spread, summary, values, where
from torch import Tensor
from torch.optim import Adam

from lightning_rank.functional import (
    principal_deviations,
    row_moments,
    variance_cutoff,
    weight_decay_for_variance_cutoff,
)
from rank_trainer.report.plots import COLOURS

SEEDS = (20, 21, 22)
RANKS = (4, 8, 16)
DEPTHS = (0, 2, 4, 8, 16)
DECAYS = {0.05: 0.005, 0.1: 0.02}  # by the deviation of the noise
# Without linear layers the same decay cuts lower, so a second control has the cutoff of depth 4.
SAME_CUTOFF = {noise: weight_decay_for_variance_cutoff(variance_cutoff(decay, 4), 0) for noise, decay in DECAYS.items()}
CUTTING_DECAYS = (0.001, 0.003, 0.01, 0.03)
FOUND = 0.1  # gain of a direction that counts as kept
EXCESS = 1.06  # error over the best of the data's rank, up to which it is next to the best
HELD, CUT = ("1 to 1/4", "1 to 0.1, geometric", "all 1"), "1 to 1e-3, geometric"  # spectra


def hold(noise: float, weight_decay: float, depth: int, steps: int, every: int, gain: float = 1.0) -> list[Row]:
    """Train on all ranks, spectra and seeds with decay: a row for each, with the rank at every check."""
    trials = [
        Trial(rank, depth, seed, gain, bias=True, noise=noise, spectrum=spectrum)
        for rank, spectrum, seed in itertools.product(RANKS, HELD, SEEDS)
    ]
    stack = Stack.of(trials)
    optimizer = Adam(stack.param_groups(1e-3, weight_decay=weight_decay))
    checks = {step: stack.ranks().tolist() for step in stack.train(optimizer, steps) if step % every == 0}
    rows = stack.measure(trials)
    for index, row in enumerate(rows):
        row["weight_decay"] = weight_decay
        row |= {f"found_at_{step}": found[index] for step, found in checks.items()}
    return rows


def cut_by(weight_decay: float, depth: int, steps: int) -> list[Row]:
    """Train on 32 directions of all sizes: a row for each direction and seed, with its gain, measured and predicted."""
    trials = [Trial(32, depth, seed, gain=1.0, noise=0.0, spectrum=CUT) for seed in SEEDS]
    stack = Stack.trained(trials, Adam, 1e-3, steps, weight_decay=weight_decay)
    rows = []
    for trial, train, gains in zip(trials, stack.train_rows, stack.singular_values(), strict=True):
        variances = principal_deviations(row_moments(train)).square()[:32]
        predicted = rest_point(variances, weight_decay, depth)
        rows += [
            {"depth": depth, "weight_decay": weight_decay, "seed": trial.seed, "variance": v, "gain": p, "predicted": q}
            for v, p, q in zip(variances.tolist(), gains.tolist(), predicted.tolist(), strict=False)
        ]
    return rows


def rest_point(variances: Tensor, weight_decay: float, depth: int) -> Tensor:
    r"""Gain ``p`` at which decay and reconstruction balance, ``2 v (1 - p) p^a = \lambda``: its stable root, or 0."""
    a = 1 - 2 / (depth + 2)
    low, high = torch.full_like(variances, a / (1 + a)), torch.ones_like(variances)
    for _ in range(60):
        middle = (low + high) / 2
        pulls = 2 * variances * (1 - middle) * middle**a > weight_decay
        low, high = torch.where(pulls, middle, low), torch.where(pulls, high, middle)
    return torch.where(variances > variance_cutoff(weight_decay, depth), low, 0)


def measure(
    depths: Sequence[int] = DEPTHS, cutting_decays: Sequence[float] = CUTTING_DECAYS, steps: int = 20_000
) -> study.Tables:
    """Whether the rank holds, from gain 1 and from a small one, and the gains of directions of all sizes."""
    every = steps // 20
    grid = [(noise, decay, depth) for noise, decay in DECAYS.items() for depth in depths]
    grid += [(noise, decay, 0) for noise, decay in SAME_CUTOFF.items()]
    return {
        "runs": [row for setting in study.progress(grid) for row in hold(*setting, steps, every)],
        "gain_0.03": hold(0.1, DECAYS[0.1], 4, steps // 4, every, gain=0.03),
        "cut": [
            row for job in study.progress(itertools.product(cutting_decays, depths)) for row in cut_by(*job, steps)
        ],
    }


def right(row: Row) -> bool:
    """Whether the rank is that of the data."""
    return row["found"] == row["rank"]


def held(row: Row) -> bool:
    """Whether the rank was that of the data at every check."""
    return all(found == row["rank"] for key, found in row.items() if key.startswith("found_at"))


def with_layers(rows: Rows) -> list[Row]:
    """Those of networks with linear layers."""
    return [row for row in rows if row["depth"] > 0]


def judged(rows: Rows) -> str:
    """Whether with linear layers all runs end at the rank of their data, and at next to the best error."""
    found = [right(row) for row in with_layers(rows)]
    good = all(found) and max(values(with_layers(rows), "excess")) <= EXCESS
    return study.judged(good, sum(found) >= 0.9 * len(found))


def control_verdict(runs: Rows) -> str:
    """Whether it is the depth that holds the rank: what decay does without linear layers."""
    controls = where(runs, depth=0)
    same_decay = [row for row in controls if row["weight_decay"] == DECAYS[row["noise"]]]
    same_cutoff = [row for row in controls if row not in same_decay]
    holding = [all(map(right, where(some, noise=noise))) for some in (same_decay, same_cutoff) for noise in DECAYS]
    head = f"**Depth is {'not ' if any(holding) else ''}what holds it.** Without linear layers L2 holds it in "
    head += f"all runs of {sum(holding)} of {len(holding)} controls."
    told = "; ".join(
        f"at noise {noise:g} in {share(where(same_decay, noise=noise), right)} runs at the same decay, whose cutoff is "
        f"{variance_cutoff(decay, 0) / noise**2:.2g} times the variance of the noise, and in "
        f"{share(where(same_cutoff, noise=noise), right)} at the cutoff of depth 4"
        for noise, decay in DECAYS.items()
    )
    deep = where(runs, depth=4)
    factors = [variance_cutoff(1.0, depth) / variance_cutoff(1.0, 0) for depth in different(with_layers(runs), "depth")]
    return f"""{head} It is right {told}. Depth adds a cutoff {ends(factors, ".1f")} times as high for the same decay,
and the direction after the rank has at most {max(values(deep, "variance_ratio")):.0e} of the largest variance at depth
4, where it has {max(values(same_cutoff, "variance_ratio")):.0e} without linear layers at the same cutoff; the excess is
up to {max(values(deep, "excess")):.3f} there and {max(values(same_cutoff, "excess")):.3f} here."""


def start_verdict(gain_0_03: Rows) -> str:
    """Whether decay leaves the rank to a start from a small gain."""
    lower = sum(row["found"] < row["rank"] for row in gain_0_03)
    head = "It has to start from gain 1." if lower else "It may start from a small gain."
    why = ": decay wins over weak directions before they have been learned" if lower else ""
    return f"""{head} From gain 0.03 under the same decay, which is there from the first step, at noise 0.1 and depth 4
the rank was that of the data in {share(gain_0_03, right)} and lower in {lower}{why}."""


def cut_counts(cut: Rows) -> tuple[int, int, int]:
    """With linear layers: directions kept though predicted to be cut, cut though predicted to be kept, predicted."""
    ours = [(row["gain"] > FOUND, row["predicted"] > FOUND) for row in with_layers(cut)]
    more, fewer = (sum(kept is which and predicted is not which for kept, predicted in ours) for which in (True, False))
    return more, fewer, sum(predicted for _, predicted in ours)


def cut_judged(cut: Rows) -> str:
    """Whether it cuts where predicted, or the prediction is an upper bound that nine in ten directions reach."""
    more, fewer, predicted = cut_counts(cut)
    return study.judged(more == fewer == 0, more == 0 and fewer <= 0.1 * predicted)


def cut_verdict(cut: Rows) -> str:
    """What the report says of where it cuts."""
    more, fewer, predicted = cut_counts(cut)
    lost = [row for row in with_layers(cut) if row["gain"] <= FOUND < row["predicted"]]
    highest = max((row["variance"] / variance_cutoff(row["weight_decay"], row["depth"]) for row in lost), default=1.0)
    kept = [row for row in with_layers(cut) if row["gain"] > FOUND]
    off = max((abs(row["gain"] - row["predicted"]) for row in kept), default=0.0)
    return f"""**Verdict: {cut_judged(cut)}.** With linear layers {more} directions more than predicted were kept, and
{fewer} of the {predicted} predicted were not, none of them above {highest:.2f} times the cutoff. Nothing is also a
rest point, and a direction just above the cutoff falls to it if the start gives it too little. The gains of what is
kept are within {off:.2f} of those predicted. (Within limits: none more, and nine in ten of those predicted.)"""


def hold_verdict(runs: Rows) -> str:
    """What the report says of the rank with linear layers."""
    ours = with_layers(runs)
    return f"""**Verdict: {judged(runs)}** for linear autoencoders: with linear layers the rank is that of the data at
the end in {share(ours, right)} runs, and at every check in {sum(map(held, ours))}; excess
{ends(values(ours, "excess"))} (required: within {100 * (EXCESS - 1):.0f} %)."""


def verdict(runs: Rows, gain_0_03: Rows, cut: Rows) -> str:
    """What the report says of all of it."""
    return "\n\n".join([hold_verdict(runs), control_verdict(runs), start_verdict(gain_0_03), cut_verdict(cut)])


def holding(rows: Rows) -> str:
    """How many runs had the rank of the data, by noise, decay and depth."""
    return summary(
        rows,
        {"noise": "noise", "weight_decay": "decay", "depth": "depth"},
        {
            "cutoff": lambda some: variance_cutoff(some[0]["weight_decay"], some[0]["depth"]),
            "rank right at the end": lambda some: share(some, right),
            "at every check": lambda some: share(some, held),
            "excess": lambda some: ends(values(some, "excess")),
            "largest variance ratio after the rank": lambda some: max(values(some, "variance_ratio")),
        },
    )


def cutting(rows: Rows) -> str:
    """Directions predicted and found by decay and depth, the largest that was cut, and how exact the gains are."""

    def cutoff(some: Rows) -> float:
        return variance_cutoff(some[0]["weight_decay"], some[0]["depth"])

    def count(some: Rows, key: str) -> str:
        return spread([sum(value > FOUND for value in values(some, key, seed=seed)) for seed in SEEDS])

    return summary(
        rows,
        {"weight_decay": "decay", "depth": "depth"},
        {
            "cutoff": cutoff,
            "directions predicted": lambda some: count(some, "predicted"),
            "found": lambda some: count(some, "gain"),
            "largest cut / cutoff": lambda some: (
                max((row["variance"] for row in some if row["gain"] <= FOUND), default=0) / cutoff(some)
            ),
            "largest error of a gain found": lambda some: max(
                abs(row["gain"] - row["predicted"]) for row in some if row["gain"] > FOUND
            ),
        },
    )


def picture(runs: Rows, cut: Rows) -> Figure:
    """Rank against steps, and the gain of each direction against its variance, measured over predicted."""
    figure = Figure(figsize=(12, 4.8), dpi=130, layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.4))
    for row in runs:
        if row["weight_decay"] in DECAYS.values():
            steps, found = zip(*((int(k.split("_")[-1]), v) for k, v in row.items() if "found_at" in k), strict=True)
            style = {"color": "#BBBBBB", "linewidth": 0.7} if row["depth"] == 0 else {"color": COLOURS[0], "zorder": 3}
            left.plot(steps, found, **style)
    left.plot([], [], color=COLOURS[0], label="with linear layers")
    left.plot([], [], color="#BBBBBB", label="none, the same decay")
    some = where(cut, weight_decay=CUTTING_DECAYS[2])
    curves(right, some, "variance", "gain", by="depth", style="", label="{} linear layers")
    for depth, colour in zip(different(some, "depth"), COLOURS, strict=False):
        variances = torch.logspace(-3, 0, 2000, dtype=torch.float64)
        right.plot(variances, rest_point(variances, CUTTING_DECAYS[2], depth), color=colour, linewidth=1)
    left.set(yscale="log", yticks=(*RANKS, 32), yticklabels=(*RANKS, 32), ylim=(2, 36), title="a line a run")
    left.minorticks_off()
    right.set(xscale="log", title=f"decay {CUTTING_DECAYS[2]:g}: measured (dots) and predicted (lines)")
    finish(figure, "step", "numerical rank")
    right.set(xlabel="variance of the direction", ylabel="gain from end to end")
    return figure


def text(runs: Rows, gain_0_03: Rows, cut: Rows, steps: int) -> str:
    """The report."""
    return f"""`torch.optim.Adam` at 1e-3 with coupled `weight_decay` on the weights of encoder, decoder and all
linear layers; biases in encoder and decoder, undecayed; orthogonal layers of gain 1 at the learning rate over depth;
squared error summed over features. Data `x = A c` + noise, 64 features, 32 latents, ranks 4, 8 and 16, the variances
of `c` falling linearly from 1 to 1/4, falling geometrically from 1 to 0.1, or all 1; 4096 rows to train on in batches
of 128, 4096 held out; {steps:,} steps (from gain 0.03, {steps // 4:,}). The rank counts held-out directions with more
than 1e-3 of the largest *variance*, checked every {steps // 20:,} steps; the excess is the held-out error over that of
PCA at the data's rank. Seeds {", ".join(map(str, SEEDS))}: 27 runs a line. Depth 0 is the control without linear
layers, at the same decay and, in the last two lines, at the cutoff that depth 4 has.

{holding(runs)}

{hold_verdict(runs)}

{control_verdict(runs)}

{start_verdict(gain_0_03)}

![Rank against steps, and gains of directions of all sizes](fixed_point.png)

## Where it cuts

32 directions, variances from 1 to 1e-3 in equal steps of the logarithm, no noise, no biases, {steps:,} steps.
Predicted: the eigenvalues of the training covariance above
[`variance_cutoff`](../../../lightning_rank/functional/weight_decay.py), and the gain `p` of each from end to end,
where `2 v (1 - p) p^a = decay`, `a = 1 - 2 / (depth + 2)`. Found: gains above {FOUND}. Medians over {len(SEEDS)}
seeds (and the ends, where they differ).

{cutting(cut)}

{cut_verdict(cut)}"""


STUDY = study.Study(
    name="rank_fixed_point",
    title="The rank as a fixed point",
    measure=measure,
    text=text,
    verdict=verdict,
    figures={"fixed_point.png": picture},
    quick={"depths": (0, 4), "cutting_decays": (0.01,), "steps": 20},
    flags={"steps": "of each training"},
)
if __name__ == "__main__":
    STUDY.main()
