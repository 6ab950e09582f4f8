"""Whether a linear autoencoder finds the rank of its data: ours, and what is left without its parts."""

import itertools
import time
from collections.abc import Sequence
from typing import NamedTuple

import study
from figures import curves, finish, panels
from linear_autoencoders import Stack, Trial
from matplotlib.figure import Figure
from tables import Row, Rows, different, ends, share, spread, summary, values, where
from torch.optim import Adam

from lightning_rank.optim.param_groups import Multiplier

SEEDS = (10, 11, 12)
RANKS = (4, 8, 16)
DEPTHS = (2, 4, 8, 16)


class Variant(NamedTuple):
    """How the linear layers start and at which part of the learning rate they train."""

    gain: float = 0.03
    init: str = "orthogonal"
    multiplier: Multiplier = "inverse_depth"


OURS, PLAIN = "ours", "plain"
VARIANTS = {
    OURS: Variant(),
    PLAIN: Variant(),
    "IRMAE style (default, unscaled)": Variant(init="default", multiplier=1.0),
    "default, scaled": Variant(init="default"),
    "orthogonal, unscaled": Variant(multiplier=1.0),
    "orthogonal, gain 1": Variant(gain=1.0),
}
#: What is left without each.
PARTS = {
    "small gain": "orthogonal, gain 1",
    "orthogonal start": "default, scaled",
    "scaled learning rate": "orthogonal, unscaled",
}


def measure(ranks: Sequence[int] = RANKS, depths: Sequence[int] = DEPTHS, steps: int = 1000) -> study.Tables:
    """Train all variants at all depths, on all ranks and seeds at once."""
    rows: list[Row] = []
    for name, variant in VARIANTS.items():
        for depth in (0,) if name == PLAIN else depths:
            pairs = itertools.product(ranks, SEEDS)
            trials = [Trial(rank, depth, seed, variant.gain, variant.init) for rank, seed in pairs]
            start = time.perf_counter()
            found = Stack.trained(trials, Adam, 1e-3, steps, multiplier=variant.multiplier).measure(trials)
            seconds = (time.perf_counter() - start) / len(trials)
            rows += [{"variant": name, **row, "seconds": seconds} for row in found]
    return {"runs": rows}


def finds_rank(row: Row) -> bool:
    """The rank found is that of the data."""
    return row["found"] == row["rank"]


def exact(row: Row) -> bool:
    """Rank, error and cut as required of ours."""
    return finds_rank(row) and 0.97 <= row["excess"] <= 1.06 and row["variance_ratio"] < 5e-4


def good(rows: Rows) -> bool:
    """As many runs find the rank as are required."""
    return sum(map(finds_rank, rows)) >= 35 / 36 * len(rows)


def verdict(runs: Rows) -> str:
    """What the report says of it, and of what is left without its parts."""
    ours = where(runs, variant=OURS)
    met = sum(map(exact, ours)) == sum(map(finds_rank, ours))
    parts = []
    for part, variant in PARTS.items():
        some = where(runs, variant=variant)
        last = max(values(some, "variance_ratio"))
        parts.append(
            f"the {part} is {'not ' if good(some) else ''}needed (without it the rank is right in "
            f"{share(some, finds_rank)}, with up to {last:.0e} in the direction after)"
        )
    return f"""**Verdict: {study.judged(good(ours) and met, False)}**, on these linear data: the rank in
{share(ours, finds_rank)}, all three in {sum(map(exact, ours))}, with {max(values(ours, "variance_ratio")):.0e} in the
direction after at most. For how long, see [rank_window](../rank_window/README.md). Of its parts, {"; ".join(parts)}.
What the learning rate is for shows in [depth_coordinate_check](../depth_coordinate_check/README.md)."""


def results(rows: Rows) -> str:
    """How many runs of each variant found the rank, and the ends of the errors."""
    columns = {
        "rank found is that of the data": lambda some: share(some, finds_rank),
        "excess error": lambda some: ends(values(some, "excess"), ".3g"),
        "variance ratio after the rank": lambda some: ends(values(some, "variance_ratio"), ".3g"),
        "all three met": lambda some: sum(map(exact, some)),
    }
    return summary(rows, {"variant": "variant"}, columns)


def by_depth(rows: Rows) -> str:
    """Rank found and excess error of each variant and depth: the median over seeds, and the ends."""
    columns = {
        f"{key}, rank {rank}": lambda some, key=key, rank=rank: spread(values(some, key, rank=rank))
        for rank in different(rows, "rank")
        for key in ("found", "excess")
    }
    return summary(rows, {"variant": "variant", "depth": "depth"}, columns)


def picture(runs: Rows) -> Figure:
    """Rank found and excess error against depth, a column a rank of the data, a line a variant."""
    plain = [
        row | {"depth": depth} for row in where(runs, variant=PLAIN) for depth in different(runs, "depth") if depth
    ]
    layered = [row for row in runs if row["depth"]]
    both = [
        row | {"what": what, "value": row[key]}
        for key, what in (("found", "numerical rank found"), ("excess", "error / best of the data's rank"))
        for row in layered + plain  # which has no depth
    ]
    figure, grid = panels(both, "rank", "what", size=(12, 6.8), sharex=True, sharey="row")
    for axes, some in grid:
        curves(axes, some, "depth", "value", by="variant")
        found = some[0]["what"].startswith("numerical")
        axes.axhline(some[0]["rank"] if found else 1, color="black", linewidth=0.8, linestyle=":")
        axes.set_yscale("linear" if found else "log")
    return finish(figure, "linear layers", "", different(layered, "depth"))


def text(runs: Rows, verdict: str, steps: int) -> str:
    """The report."""
    return f"""A bias-free linear autoencoder, 64 features and 32 latents, on `x = A c` + noise of deviation 0.05, the
variances of `c` falling from 1 to 1/4; 4096 rows to train on, 4096 held out; batches of 128, squared error summed
over features, Adam at 1e-3, {steps:,} steps. `ours`: orthogonal layers of end-to-end gain 0.03 at the learning rate
over depth. The rank found counts the directions of the held-out latents with more than 1e-3 of the largest
*variance*; the excess is the held-out error over that of PCA at the data's rank, so that below 1 the noise is fitted.
Seeds {", ".join(map(str, SEEDS))}, for data and initial weights alike; they were run once, for this report.

Required of ours: the rank of the data in at least 35 of 36, excess in [0.97, 1.06], variance ratio after the rank
below 5e-4.

{results(runs)}

{verdict}

![Rank found and excess error against depth](recovery.png)

By depth, the median over seeds (and the ends, where they differ):

{by_depth(runs)}

Ours took {sum(values(runs, "seconds", variant=OURS)):.0f} s."""


STUDY = study.Study(
    name="synthetic_recovery",
    title="Synthetic recovery",
    measure=measure,
    text=text,
    verdict=verdict,
    figures={"recovery.png": picture},
    quick={"ranks": (4,), "depths": (4,), "steps": 50},
)
if __name__ == "__main__":
    STUDY.main()
