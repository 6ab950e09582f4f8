"""What the linear bottleneck costs, beside layers in sequence (as IRMAE does it) and beside a single layer.

On the CPU, and on a GPU where there is one.
"""

import itertools
from collections.abc import Sequence
from typing import Literal

import study
import torch
from bottleneck_ways import (
    Composed,
    Tree,
    evaluation,
    graphed,
    in_sequence,
    saved_bytes,
    tf32,
    training_step,
    whole_step,
)
from tables import Row, Rows, different, markdown, where
from timing import interleave, milliseconds, ratio
from torch import nn

from lightning_rank import LinearBottleneck, attach_linear_bottleneck
from rank_trainer.autoencoders import convolutional_autoencoder

DIMS = (64, 128, 256, 512, 1024)
DEPTHS = (2, 4, 8, 16)
ROWS = (32, 64, 128, 256, 512, 1024, 2048, 4096)
REQUIRED = [  # depth, dim, rows, at most this part of the time in sequence
    (8, 128, 1024, 0.32),
    (8, 128, 256, 0.70),
    (8, 128, 4096, 0.19),
    (16, 128, 1024, 0.25),
    (2, 128, 1024, 0.68),
    (8, 512, 1024, 0.65),
    (8, 128, 64, 1.10),
    (8, 128, 128, 1.08),
]


def step(depth: int, dim: int, rows: int, device: str) -> Row:
    """One size of a training step."""
    ours = LinearBottleneck(dim, depth, gain=1.0, device=device)
    single = nn.Linear(dim, dim, bias=False, device=device)
    batch = torch.randn(rows, dim, device=device)
    modules = {"ours": ours, "sequence": in_sequence(ours), "single": single}
    times = interleave({name: training_step(module, batch) for name, module in modules.items()}, budget=6)
    sequence = ratio(times, "ours", "sequence")
    return {
        "device": device,
        "depth": depth,
        "dim": dim,
        "rows": rows,
        **{f"{name}_ms": milliseconds(times, name) for name in modules},
        "over_sequence": sequence.median,
        "over_sequence_p10": sequence.low,
        "over_sequence_p90": sequence.high,
        "over_single": ratio(times, "ours", "single").median,
    }


def required(device: str, threads: int, sizes: Sequence[tuple[int, int, int, float]], rounds: int) -> list[Row]:
    """The sizes with a figure to reach."""
    torch.set_num_threads(threads)
    ours = LinearBottleneck(128, 8, gain=1.0, device=device)
    ways = [
        ("training step", training_step, LinearBottleneck(dim, depth, gain=1.0, device=device), *size)
        for depth, dim, *size in sizes
    ]
    for what, module, most in (("evaluation", ours, None), ("evaluation, collapsed", ours.collapse(), 0.20)):
        ways += [(what, evaluation, module, rows, most) for rows in (256, 1024)]
    table = []
    for what, call, module, rows, most in ways:
        bottleneck = module if isinstance(module, LinearBottleneck) else ours
        batch = torch.randn(rows, bottleneck.dim, device=device)
        calls = {"ours": call(module, batch), "sequence": call(in_sequence(bottleneck), batch)}
        found = ratio(interleave(calls, rounds=rounds), "ours", "sequence")
        row = {"threads": threads, "what": what, "depth": bottleneck.depth, "dim": bottleneck.dim, "rows": rows}
        row |= {"ours / sequence": found, "required": "" if most is None else most}
        table.append(row | {"reached": "" if most is None else "yes" if found.median <= most else "no"})
    torch.set_num_threads(1)
    return table


def threshold(device: str, dims: Sequence[int], rounds: int) -> list[Row]:
    """Composing always, over layer by layer, around as many rows as features."""
    table = []
    for dim, depth in itertools.product(dims, (2, 8)):
        row: Row = {"dim": dim, "depth": depth}
        for name, share in {"dim / 4": 1 / 4, "dim / 2": 1 / 2, "dim": 1, "2 dim": 2, "4 dim": 4}.items():
            ours = LinearBottleneck(dim, depth, gain=1.0, device=device)
            batch = torch.randn(int(share * dim), dim, device=device)
            modules = {"composed": Composed(ours), "sequence": in_sequence(ours)}
            times = interleave({way: training_step(module, batch) for way, module in modules.items()}, rounds=rounds)
            row[f"rows = {name}"] = ratio(times, "composed", "sequence").median
        table.append(row)
    return table


def memory(dim: int, rows: int) -> list[Row]:
    """Bytes that the forward pass keeps for the backward pass, parameters left out."""
    table = []
    for depth in DEPTHS:
        ours = LinearBottleneck(dim, depth, gain=1.0)
        own, sequence = (saved_bytes(module, torch.randn(rows, dim)) / 2**20 for module in (ours, in_sequence(ours)))
        row = {
            "depth": depth,
            "ours, MiB": own,
            "rows d + (N - 1) d^2": 4 * (rows * dim + (depth - 1) * dim**2) / 2**20,
        }
        row |= {"sequence, MiB": sequence, "N rows d": 4 * depth * rows * dim / 2**20}
        table.append(row | {"ours / sequence": own / sequence})
    return table


def network(device: str, depths: Sequence[int], images: int, rounds: int) -> list[Row]:
    """A training step of IRMAE's network for MNIST with linear layers over without."""
    batch = [torch.rand(images, 1, 32, 32, device=device)]
    steps = {}
    for depth in (0, *depths):
        for way in ("ours", "sequence") if depth else ("plain",):
            module = convolutional_autoencoder(channels=1).to(device)
            attach_linear_bottleneck(module, dim=128, depth=depth, gain=1.0)
            if way == "sequence":
                module.encoder.linear_bottleneck = in_sequence(module.encoder.linear_bottleneck)
            steps[f"{way}{depth}"] = whole_step(module, batch)
    times = interleave(steps, rounds=rounds, budget=120)
    return [
        {"depth": depth, "ours, ms": milliseconds(times, f"ours{depth}"), "depth 0, ms": milliseconds(times, "plain0")}
        | {f"{way} / depth 0": ratio(times, f"{way}{depth}", "plain0") for way in ("ours", "sequence")}
        for depth in depths
    ]


def on_gpu(depths: Sequence[int] = (2, 8, 16), dims: Sequence[int] = (128, 256, 512)) -> list[Row]:
    """Ways to run the same step on a GPU: precision, compiled, as a graph."""
    table = []
    for depth, dim, rows in itertools.product(depths, dims, (256, 1024, 4096)):
        ours = LinearBottleneck(dim, depth, gain=1.0, device="cuda")
        modules = {"ours": ours, "sequence": in_sequence(ours)}
        batch = torch.randn(rows, dim, device="cuda")
        found: Row = {}
        for setting in ("float32", "TF32", "bf16 autocast"):
            with tf32(setting == "TF32"):
                steps = {name: training_step(m, batch, setting == "bf16 autocast") for name, m in modules.items()}
                found[f"{setting}: ours / sequence"] = ratio(interleave(steps), "ours", "sequence").median
        ways = {
            "eager": training_step(ours, batch),
            "product tree": training_step(Tree(ours), batch),
            "torch.compile": training_step(torch.compile(ours), batch),
            "CUDA graph": graphed(ours, batch),
        }
        times = interleave(ways)
        found |= {f"{way} / eager": ratio(times, way, "eager").median for way in list(ways)[1:]}
        table.append({"depth": depth, "dim": dim, "rows": rows, "eager, ms": milliseconds(times, "eager"), **found})
    return table


def measure(
    device: Literal["cpu", "cuda"] = "cuda" if torch.cuda.is_available() else "cpu",
    depths: Sequence[int] = DEPTHS,
    dims: Sequence[int] = DIMS,
    rows: Sequence[int] = ROWS,
    figures: Sequence[tuple[int, int, int, float]] = REQUIRED,
    threads: Sequence[int] = (1, 2),
    images: int = 256,
    rounds: int = 41,
) -> study.Tables:
    """All of it, on one thread; the sizes with a figure to reach on two as well."""
    fewer = min(rounds, 15)
    tables = {
        "steps": [step(*size, device) for size in itertools.product(depths, dims, rows)],
        "required": [row for n in threads if n == 1 or device == "cpu" for row in required(device, n, figures, rounds)],
        "threshold": threshold(device, [dim for dim in dims if dim <= 512], fewer),
        "memory": memory(128, 1024),
        "network": network(device, [depth for depth in depths if depth != 4], images, fewer),
    }
    return tables | ({"on_gpu": on_gpu()} if device == "cuda" else {})


def grids(steps: Rows, key: str) -> str:
    """A table a depth, a line a width."""
    return "\n\n".join(
        markdown(
            [
                {f"depth {depth}": f"dim {dim}"}
                | {f"{row['rows']} rows": row[key] for row in where(steps, depth=depth, dim=dim)}
                for dim in different(steps, "dim")
            ]
        )
        for depth in different(steps, "depth")
    )


def text(
    steps: Rows, required: Rows, threshold: Rows, memory: Rows, network: Rows, images: int, on_gpu: Rows = ()
) -> str:
    """The report."""
    gpu = f"\n\n## Precision, compilation and graphs\n\n{markdown(on_gpu)}" if on_gpu else ""
    return f"""A training step is forward and backward, down to the gradient of the input; times of one way over another
are the median of interleaved rounds, with the middle 80 % of them. In sequence: the same weights in one `nn.Linear`
after another. One thread, float32, unless said.

## Sizes with a figure to reach

{markdown(required)}

Evaluation composes as training does, in each call: nothing is kept. Collapsed, the bottleneck is one layer.

## Training step over layers in sequence

{grids(steps, "over_sequence")}

## Training step over a single `nn.Linear`, the least that any depth could take

{grids(steps, "over_single")}

All sizes with times and spread: [steps.csv](steps.csv).

## From how many rows composing pays

Composing always, over layer by layer always. The module composes from as many rows as features on.

{markdown(threshold)}

## Memory kept for the backward pass, 1024 rows of 128

{markdown(memory)}

## A training step of IRMAE's network for MNIST, batch {images}, Adam included

{markdown(network)}{gpu}"""


STUDY = study.Study(
    name=lambda device: "bottleneck" if device == "cpu" else "bottleneck_cuda",
    title="Cost of the linear bottleneck",
    measure=measure,
    text=text,
    quick={"depths": (8,), "dims": (128,), "rows": (256,), "figures": REQUIRED[6:7]}
    | {"threads": (1,), "images": 8, "rounds": 3},
    flags={"device": "that is measured"},
)
if __name__ == "__main__":
    STUDY.main()
