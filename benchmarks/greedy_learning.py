"""One direction after another: gains during training, over those that the law of deep linear networks predicts."""

import itertools
import math
from collections.abc import Sequence
from functools import partial
from statistics import median

import study
import torch
from figures import finish, panels
from linear_autoencoders import DIM, FEATURES
from matplotlib.figure import Figure
from tables import Row, Rows, different, spread, summary, values, where
from torch import Tensor, nn

from lightning_rank import LinearBottleneck, depth_scaled_param_groups
from rank_trainer.report.plots import COLOURS

VARIANCES = torch.tensor([1, 0.5, 0.25, 0.125], dtype=torch.float64)
GAIN, OUTER = 0.03, 0.5  # of the linear layers together, and of encoder and decoder each, if aligned
TIMES = {1: 20, 2: 70, 4: 130, 8: 200}  # by depth, in steps times the learning rate: until all is learned
DEPTHS = tuple(TIMES)
ALIGNED, USUAL, ADAM = "aligned start, SGD", "usual start, SGD", "usual start, Adam"
RUNS = {  # optimizer, learning rate, steps from check to check, seeds
    ALIGNED: (torch.optim.SGD, 0.02, 5, (40,)),  # another seed is another rotation of the same
    USUAL: (torch.optim.SGD, 0.02, 5, (40, 41, 42)),
    ADAM: (torch.optim.Adam, 1e-3, 2, (40, 41, 42)),
}
ADAM_STEPS = 400
#: Factors between measured and predicted times up to which the law "holds", and "holds within limits".
HOLDS, WITHIN_LIMITS = 1.02, 2.0
#: Distance of a gain from its curve up to which it holds, and how much later the last direction is learned if in turn.
GAIN_ERROR, APART = 0.05, 2.0


def make_model(depth: int, aligned: bool, axes: Tensor) -> nn.Sequential:
    """Orthogonal linear layers; around them nn.Linear's own start, or one aligned with the axes of the data.

    Aligned: the encoder's first rows are the axes, and the decoder is the transpose of all before it, so that each
    direction of the data has a path of its own through all factors.
    """
    encoder, decoder = (nn.Linear(*shape, bias=False, dtype=axes.dtype) for shape in ((FEATURES, DIM), (DIM, FEATURES)))
    bottleneck = LinearBottleneck(DIM, depth, gain=GAIN, dtype=axes.dtype)
    if aligned:
        count = axes.shape[1]
        others = torch.linalg.qr(torch.cat([axes, torch.randn(FEATURES, DIM - count, dtype=axes.dtype)], 1)).Q
        with torch.no_grad():
            encoder.weight.copy_(OUTER * torch.cat([axes, others[:, count:]], 1).T)
            decoder.weight.copy_((bottleneck.weight @ encoder.weight).T / GAIN)
    return nn.Sequential(encoder, bottleneck, decoder)


def train(run: str, depth: int, seed: int, steps: int) -> list[Row]:
    """Train on all the data at once: a row for each check and direction, measured and predicted.

    Under SGD the time is the step times the learning rate, under Adam the step. The gain of a direction ``a`` is
    ``a^T W a`` of the whole map, and its deviation in the latents that of the data times the gain up to there.
    """
    torch.manual_seed(seed)
    axes = torch.linalg.qr(torch.randn(FEATURES, len(VARIANCES), dtype=torch.float64)).Q
    # As many rows as directions have exactly the covariance wanted.
    rows = (len(VARIANCES) * VARIANCES).sqrt()[:, None] * axes.T
    model = make_model(depth, run == ALIGNED, axes)
    outer = [(weight @ axes).norm(dim=0).detach() for weight in (model[0].weight, model[2].weight.T)]
    make_optimizer, lr, every, _ = RUNS[run]
    optimizer = make_optimizer(depth_scaled_param_groups(model, lr))
    unit = lr if make_optimizer is torch.optim.SGD else 1
    times, gains, latents = [], [], []
    for step in range(1, steps + 1):
        loss = (model(rows) - rows).square().sum(1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % every == 0:
            with torch.no_grad():
                times.append(unit * step)
                gains.append((model(axes.T) * axes.T).sum(1))
                latents.append(model[:2](axes.T).norm(dim=1) * VARIANCES.sqrt())
    predicted = (
        grow(depth, *outer, times) if make_optimizer is torch.optim.SGD else [(gains[0] * torch.nan,) * 2] * len(times)
    )
    return [
        {"run": run, "depth": depth, "seed": seed, "variance": VARIANCES[k].item(), "time": time}
        | {"gain": p[k].item(), "predicted_gain": q[0][k].item()}
        | {"latent": z[k].item(), "predicted_latent": (q[1] * VARIANCES.sqrt())[k].item()}
        for time, p, z, q in zip(times, gains, latents, predicted, strict=True)
        for k in range(len(VARIANCES))
    ]


def grow(depth: int, encoder: Tensor, decoder: Tensor, times: list[float]) -> list[tuple[Tensor, Tensor]]:
    r"""Gain from end to end, and up to the latents, of directions with a path of their own, under gradient flow.

    .. math::
        p = \sqrt{(e^2 + u) (d^2 + u)}\,(g^{2/N} + u / N)^{N/2}, \qquad \dot u = 4 v (1 - p)\,p

    with ``e``, ``d`` and ``g`` the gains of encoder, decoder and the ``N`` linear layers together at the start, and
    ``v`` the variance. For the loss is ``v (1 - p)^2``, so that the square of each outer factor grows at
    ``4 v (1 - p) p``, and that of each linear one, whose learning rate is over ``N``, at the ``N``-th part of it: all
    that the factors have learned is one number, ``u``. After Saxe et al. 2014 and Arora et al. 2018, with unequal
    starts and learning rates.
    """

    def gains(u: Tensor) -> tuple[Tensor, Tensor]:
        latent = (encoder**2 + u).sqrt() * (GAIN ** (2 / depth) + u / depth) ** (depth / 2)
        return latent * (decoder**2 + u).sqrt(), latent

    def speed(u: Tensor) -> Tensor:
        p = gains(u)[0]
        return 4 * VARIANCES * (1 - p) * p

    u, now, learned = torch.zeros_like(VARIANCES), 0.0, []
    for time in times:  # by the method of Runge and Kutta
        h, now = time - now, time
        first = speed(u)
        second = speed(u + h / 2 * first)
        third = speed(u + h / 2 * second)
        u = u + h / 6 * (first + 2 * second + 2 * third + speed(u + h * third))
        learned.append(gains(u))
    return learned


def crossing(rows: Rows, key: str, level: float) -> float:
    """When a curve first reaches a level; infinite if it does not."""
    below = (0.0, 0.0)
    for row in rows:
        if row[key] >= level:
            return below[0] + (row["time"] - below[0]) * (level - below[1]) / (row[key] - below[1])
        below = (row["time"], row[key])
    return math.inf


def summarize(rows: Rows) -> list[Row]:
    """When each direction is learned to a half, measured and predicted, and how long it takes from 10 % to 90 %."""
    keys = ("run", "depth", "variance", "seed")
    groups: dict[tuple[object, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row[key] for key in keys), []).append(row)
    summaries = []
    for key, curve in groups.items():
        half, predicted = crossing(curve, "gain", 0.5), crossing(curve, "predicted_gain", 0.5)
        rise = (crossing(curve, "gain", 0.9) - crossing(curve, "gain", 0.1)) / half
        row = dict(zip(keys, key, strict=True)) | {"half_time": half}
        row |= {"predicted_half_time": predicted, "rise_over_half_time": rise}
        row["largest_error_of_gain"] = max(abs(step["gain"] - step["predicted_gain"]) for step in curve)
        summaries.append(row)
    return summaries


def measure(depths: Sequence[int] = DEPTHS, most_seeds: int = 3) -> study.Tables:
    """The curves of all runs, and when each direction is learned."""
    rows = [
        row
        for (run, (_, lr, _, seeds)), depth in itertools.product(RUNS.items(), depths)
        for seed in seeds[:most_seeds]
        for row in train(run, depth, seed, ADAM_STEPS if run == ADAM else round(TIMES[depth] / lr))
    ]
    return {"half_times": summarize(rows), "curves": rows}


def in_order(summaries: list[Row], run: str) -> list[float]:
    """How many times as late as the first direction the last is learned, by model; 0 if any is learned before a larger.

    A direction that is never learned is learned last.
    """
    models: dict[tuple[int, int], list[tuple[float, float]]] = {}
    for row in summaries:
        if row["run"] == run:
            models.setdefault((row["depth"], row["seed"]), []).append((-row["variance"], row["half_time"]))
    times = [[time for _, time in sorted(model)] for model in models.values()]
    return [some[-1] / some[0] if some == sorted(some) else 0.0 for some in times]


def law_judged(summaries: Rows, run: str) -> tuple[str, list[float]]:
    """Whether directions are learned at the predicted times, or in their order, and those times over predicted ones."""
    some = where(summaries, run=run)
    off, ordered = [row["half_time"] / row["predicted_half_time"] for row in some], all(in_order(summaries, run))
    holds, within = (ordered and all(1 / limit <= ratio <= limit for ratio in off) for limit in (HOLDS, WITHIN_LIMITS))
    return study.judged(holds and max(values(some, "largest_error_of_gain")) <= GAIN_ERROR, within).capitalize(), off


def order_judged(summaries: Rows, run: str) -> str:
    """Whether directions are learned one after another: it is not predicted when."""
    return study.judged(False, all(ratio >= APART for ratio in in_order(summaries, run))).capitalize()


def verdict(half_times: Rows) -> str:
    """What the report says of each start and optimizer."""
    (aligned, off), (usual, usual_off) = (law_judged(half_times, run) for run in (ALIGNED, USUAL))
    later = {run: in_order(half_times, run) for run in RUNS}
    order = {run: f"{sum(map(bool, some))} of {len(some)}" for run, some in later.items()}
    aligned_rows, depths = where(half_times, run=ALIGNED), different(half_times, "depth")
    error = max(values(aligned_rows, "largest_error_of_gain"))
    rises = [median(values(aligned_rows, "rise_over_half_time", depth=depth)) for depth in depths]
    return f"""- **{aligned}**: from the aligned start gains follow the law: half learned at {min(off):.3f} to
  {max(off):.3f} of the predicted times, no gain ever further than {error:.3f} from its curve. Directions are
  learned in the order of their variances in {order[ALIGNED]} models, the last {min(later[ALIGNED]):.1f} to
  {max(later[ALIGNED]):.1f} times as late as the first, where 1 / `v` has it at 8. At depths
  {", ".join(map(str, depths))} the rise takes {", ".join(f"{rise:.2f}" for rise in rises)} of the time that a
  direction has waited.
- **{usual}**: from the usual start the order is the same in {order[USUAL]} models, and directions are learned at
  {min(usual_off):.2f} to {max(usual_off):.2f} times the predicted times. The factors have first to turn to each
  other, and the law knows nothing of that.
- **{order_judged(half_times, ADAM)}** under Adam: the law is not one of Adam, but without noise the order is the
  same in {order[ADAM]} models. The last direction is learned {min(later[ADAM]):.1f} to {max(later[ADAM]):.1f} times
  as late as the first; under SGD from the same start, {min(later[USUAL]):.1f} to {max(later[USUAL]):.1f} times.

(Holds: times within {100 * (HOLDS - 1):.0f} %, gains within {GAIN_ERROR}; within limits: times within a factor of
{WITHIN_LIMITS:g}, in order; under Adam, the last at least {APART:g} times as late as the first.)"""


def table(half_times: Rows, run: str) -> str:
    """One run: a row for each depth and direction."""
    predicted = {
        "predicted": "predicted_half_time",
        "measured / predicted": lambda some: spread([row["half_time"] / row["predicted_half_time"] for row in some]),
    }
    return summary(
        where(half_times, run=run),
        {"depth": "depth", "variance": "variance"},
        {"half learned at": "half_time", **(predicted if run != ADAM else {})}
        | {"rise from 10 to 90 %, over that time": "rise_over_half_time"},
    )


def picture(curves: Rows, key: str, name: str) -> Figure:
    """Measured curves (wide, pale) under predicted ones (thin, dark): a row a run, a column a depth."""
    figure, grid = panels(curves, "depth", "run", size=(12, 7.6), sharey=True, sharex="row")
    for axes, some in grid:
        for variance, seed in different(some, "variance", "seed"):
            curve = where(some, variance=variance, seed=seed)
            times, colour = values(curve, "time"), COLOURS[VARIANCES.tolist().index(variance)]
            label = f"variance {variance:g}"
            axes.plot(times, values(curve, key), color=colour, linewidth=3, alpha=0.45, label=label)
            style = "-" if curve[0]["run"] == ALIGNED else ":"
            axes.plot(times, values(curve, f"predicted_{key}"), color="black", linewidth=0.8, linestyle=style)
        axes.set_xscale("log")
    return finish(figure, "step (of SGD, times the learning rate)", name)


def text(half_times: Rows, verdict: str) -> str:
    """The report."""
    return f"""Four directions of the data, of variances 1, 1/2, 1/4 and 1/8; a bias-free autoencoder of 64 features
and 32 latents; orthogonal linear layers of end-to-end gain {GAIN} at the learning rate over depth; all the data in
every step, in float64. SGD at 0.02, so that training is nearly gradient flow; Adam at 1e-3. The aligned start gives
encoder and decoder gains of {OUTER} along the axes of the data, the usual start is nn.Linear's own (seeds
{", ".join(map(str, RUNS[USUAL][-1]))}).

The law predicted by, derived in [greedy_learning.py](../../greedy_learning.py) after Saxe et al. 2014 and Arora et
al. 2018 for these starts and rates: all that the factors of a direction of variance `v` have learned is one number
`u`,

    p = sqrt((e^2 + u) (d^2 + u)) (g^(2/N) + u/N)^(N/2),    du/dt = 4 v (1 - p) p,

with `p` the gain from end to end (from the aligned start, a singular value of the whole map), and `e`, `d`, `g` those
of encoder, decoder and linear layers at the start. Its time scales as 1 / `v`.

{verdict}

![Gains from end to end](gains.png)

Coloured: measured; black: predicted (dotted where the start is not the one that the law is for). Time is logarithmic.

![Deviations in the latents](latents.png)

From the {ALIGNED}:

{table(half_times, ALIGNED)}

From the {USUAL}, the median over seeds (and the ends, where they differ):

{table(half_times, USUAL)}

From the {ADAM}, in steps:

{table(half_times, ADAM)}"""


STUDY = study.Study(
    name="greedy_learning",
    title="One direction after another",
    measure=measure,
    text=text,
    verdict=verdict,
    figures={
        "gains.png": partial(picture, key="gain", name="gain from end to end"),
        "latents.png": partial(picture, key="latent", name="deviation in the latents"),
    },
    quick={"depths": (2,), "most_seeds": 1},
    unwritten=["curves"],
)
if __name__ == "__main__":
    STUDY.main()
