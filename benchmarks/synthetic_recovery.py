"""Whether a linear autoencoder finds the rank of its data: ours, and what is left without its parts.

``--quick`` trains fewer models for fewer steps and writes nothing.
"""

import argparse
import itertools
import time
from statistics import median
from typing import Any, NamedTuple

import report
import torch
from linear_autoencoders import Cell, Stack
from matplotlib.figure import Figure

from lightning_rank.optim.param_groups import Multiplier
from rank_trainer.report.plots import COLOURS

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


def train(name: str, depth: int, ranks: tuple[int, ...], steps: int) -> list[dict[str, Any]]:
    """Train one variant at one depth on all ranks and seeds: a row for each."""
    variant = VARIANTS[name]
    cells = [Cell(rank, depth, seed, variant.gain, variant.init) for rank, seed in itertools.product(ranks, SEEDS)]
    stack = Stack.of(cells)
    optimizer = torch.optim.Adam(stack.param_groups(1e-3, multiplier=variant.multiplier))
    for _ in stack.train(optimizer, steps):
        pass
    return [{"variant": name, **row} for row in stack.measure(cells)]


def exact(row: dict[str, Any]) -> bool:
    """Rank, error and cut as required of ours."""
    return row["found"] == row["rank"] and 0.97 <= row["excess"] <= 1.06 and row["variance_ratio"] < 5e-4


def by_depth(rows: list[dict[str, Any]]) -> str:
    """Rank found and excess error of each variant and depth: the median over seeds, and the ends."""
    table = []
    for name, depth in dict.fromkeys((row["variant"], row["depth"]) for row in rows):
        line: list[object] = [name, depth]
        for rank in dict.fromkeys(row["rank"] for row in rows):
            some = [row for row in rows if (row["variant"], row["depth"], row["rank"]) == (name, depth, rank)]
            line += [report.spread([row[key] for row in some]) for key in ("found", "excess")]
        table.append(line)
    columns = [
        f"{what}, rank {rank}" for rank in dict.fromkeys(row["rank"] for row in rows) for what in ("found", "excess")
    ]
    return report.markdown(["variant", "depth", *columns], table)


def summary(rows: list[dict[str, Any]]) -> str:
    """How many runs of each variant found the rank, and the ends of the errors."""
    table = []
    for name in VARIANTS:
        some = [row for row in rows if row["variant"] == name]
        right = sum(row["found"] == row["rank"] for row in some)
        ends = [f"{f(row[key] for row in some):.3g}" for key in ("excess", "variance_ratio") for f in (min, max)]
        met = sum(map(exact, some))
        table.append([name, f"{right} of {len(some)}", f"{ends[0]} to {ends[1]}", f"{ends[2]} to {ends[3]}", met])
    header = [
        "variant",
        "rank found is that of the data",
        "excess error",
        "variance ratio after the rank",
        "all three met",
    ]
    return report.markdown(header, table)


def picture(rows: list[dict[str, Any]]) -> Figure:
    """Rank found and excess error against depth, a column a rank of the data, a line a variant, a dot a seed."""
    figure = Figure(figsize=(12, 6.4), dpi=130, layout="constrained")
    panels = figure.subplots(2, len(RANKS), sharex=True)
    for column, rank in enumerate(RANKS):
        for (name, colour), (key, axes) in itertools.product(
            zip(VARIANTS, [*COLOURS[:1], "#888888", *COLOURS[1:]], strict=False),
            zip(("found", "excess"), panels[:, column], strict=True),
        ):
            some = [row for row in rows if row["variant"] == name and row["rank"] == rank]
            depths = sorted({row["depth"] for row in some})
            middle = [median([row[key] for row in some if row["depth"] == depth]) for depth in depths]
            if name == PLAIN:
                axes.axhline(middle[0], color=colour, linestyle="--", label=name)
                continue
            axes.plot(depths, middle, color=colour, linewidth=3 if name == OURS else 1.5, label=name)
            axes.plot([row["depth"] for row in some], [row[key] for row in some], ".", color=colour)
        top, bottom = panels[:, column]
        top.set(title=f"data of rank {rank}", xscale="log", ylim=(0, 33))
        top.axhline(rank, color="black", linewidth=0.8, linestyle=":")
        bottom.axhline(1, color="black", linewidth=0.8, linestyle=":")
        bottom.set(xlabel="linear layers", yscale="log", xticks=DEPTHS, xticklabels=DEPTHS)
        bottom.minorticks_off()
    panels[0, 0].set_ylabel("numerical rank found")
    panels[1, 0].set_ylabel("error / best of the data's rank")
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer models and steps, and nothing is written")
    args = parser.parse_args()
    torch.set_num_threads(1)
    depths, ranks, steps = ((4,), (4,), 50) if args.quick else (DEPTHS, RANKS, 1000)
    rows, seconds = [], {}
    for name in VARIANTS:
        start = time.perf_counter()
        for depth in (0,) if name == PLAIN else depths:
            rows += train(name, depth, ranks, steps)
        seconds[name] = time.perf_counter() - start
    if args.quick:
        print(summary(rows))
        return
    met = sum(exact(row) for row in rows if row["variant"] == OURS)

    def count(name: str) -> int:
        return sum(row["found"] == row["rank"] for row in rows if row["variant"] == name)

    def largest(name: str) -> float:
        return max(row["variance_ratio"] for row in rows if row["variant"] == name)

    found = count(OURS)
    body = f"""A bias-free linear autoencoder, 64 features and 32 latents, on `x = A c` + noise of deviation 0.05, the
variances of `c` falling from 1 to 1/4; 4096 rows to train on, 4096 held out; batches of 128, squared error summed
over features, Adam at 1e-3, {steps} steps. `ours`: orthogonal layers of end-to-end gain 0.03 at the learning rate
over depth. The rank found counts the directions of the held-out latents with more than 1e-3 of the largest
*variance*; the excess is the held-out error over that of PCA at the data's rank, so that below 1 the noise is fitted.
Seeds {", ".join(map(str, SEEDS))}, for data and initial weights alike; they were run once, for this report.

Required of ours: the rank of the data in at least 35 of 36, excess in [0.97, 1.06], variance ratio after the rank
below 5e-4.

{summary(rows)}

**Verdict: {"holds" if found >= 35 and met == found else "does not hold here"}**, on these linear data, at 1,000
steps: the rank in {found} of 36, all three in {met}. For how long, see [rank_window](../rank_window/README.md). Two
of the parts carry it: without the small gain nothing is cut, and from the default initialization the result depends
on the depth, scaled or not. **The scaled learning rate is not needed here**: unscaled, the rank was right in
{count("orthogonal, unscaled")} of 36, if with up to {largest("orthogonal, unscaled"):.0e} in the direction after,
where ours has {largest(OURS):.0e} at most. What it is for shows in
[depth_coordinate_check](../depth_coordinate_check/README.md).

![Rank found and excess error against depth](recovery.png)

By depth, the median over seeds (and the ends, where they differ):

{by_depth(rows)}

Every run: [runs.csv](runs.csv). Ours took {seconds[OURS]:.0f} s, everything {sum(seconds.values()):.0f} s."""
    print(body)
    report.write_csv("synthetic_recovery", "runs.csv", rows)
    picture(rows).savefig(report.RESULTS / "synthetic_recovery" / "recovery.png")
    print(report.write("synthetic_recovery", "Synthetic recovery", body))


if __name__ == "__main__":
    main()
