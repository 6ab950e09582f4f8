"""What the linear bottleneck costs, beside layers in sequence (as IRMAE does it) and beside a single layer.

On the CPU, and on a GPU where there is one. ``--quick`` measures a few sizes and writes nothing.
"""

import argparse
import itertools
import sys
from collections.abc import Callable
from pathlib import Path

import report
import torch
from bottleneck_ways import Composed, Tree, evaluation, graphed, in_sequence, tf32, training_step
from timing import Ratio, interleave, milliseconds, ratio
from torch import Tensor, nn

from lightning_rank import LinearBottleneck, attach_linear_bottleneck

sys.path.append(str(Path(__file__).parents[1] / "examples"))
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


def cell(depth: int, dim: int, rows: int, device: str) -> dict[str, object]:
    """One size: a row of the CSV."""
    ours = LinearBottleneck(dim, depth, gain=1.0, device=device)
    single = nn.Linear(dim, dim, bias=False, device=device)
    batch = torch.randn(rows, dim, device=device)
    modules = {"ours": ours, "sequence": in_sequence(ours), "single": single}
    times = interleave({name: training_step(module, batch) for name, module in modules.items()}, budget=6)
    sequence, floor = ratio(times, "ours", "sequence"), ratio(times, "ours", "single")
    return {
        "device": device,
        "depth": depth,
        "dim": dim,
        "rows": rows,
        "ours_ms": milliseconds(times, "ours"),
        "sequence_ms": milliseconds(times, "sequence"),
        "single_ms": milliseconds(times, "single"),
        "over_sequence": sequence.median,
        "over_sequence_p10": sequence.low,
        "over_sequence_p90": sequence.high,
        "over_single": floor.median,
    }


def required(device: str) -> str:
    """The sizes with a figure to reach."""
    table = []
    for depth, dim, rows, most in REQUIRED:
        with torch.no_grad():
            ours = LinearBottleneck(dim, depth, gain=1.0, device=device)
        batch = torch.randn(rows, dim, device=device)
        pair = {"ours": training_step(ours, batch), "sequence": training_step(in_sequence(ours), batch)}
        table.append(["training step", depth, dim, rows, *_reached(interleave(pair, rounds=41), most)])
    ours = LinearBottleneck(128, 8, gain=1.0, device=device)
    for what, module, most in (("evaluation", ours, None), ("evaluation, collapsed", ours.collapse(), 0.20)):
        for rows in (256, 1024):
            batch = torch.randn(rows, 128, device=device)
            pair = {"ours": evaluation(module, batch), "sequence": evaluation(in_sequence(ours), batch)}
            table.append([what, 8, 128, rows, *_reached(interleave(pair, rounds=41), most)])
    return report.markdown(["what", "depth", "dim", "rows", "ours / sequence", "required", "reached"], table)


def threshold(device: str) -> str:
    """Composing always, over layer by layer, around as many rows as features."""
    table = []
    for dim, depth in itertools.product((64, 128, 256, 512), (2, 8)):
        found = []
        for rows in (dim // 4, dim // 2, dim, 2 * dim, 4 * dim):
            ours = LinearBottleneck(dim, depth, gain=1.0, device=device)
            batch = torch.randn(rows, dim, device=device)
            ways = {
                "composed": training_step(Composed(ours), batch),
                "sequence": training_step(in_sequence(ours), batch),
            }
            found.append(ratio(interleave(ways), "composed", "sequence").median)
        table.append([dim, depth, *found])
    return report.markdown(["dim", "depth", "rows = dim / 4", "dim / 2", "dim", "2 dim", "4 dim"], table)


def saved_memory(dim: int, rows: int) -> str:
    """Bytes that the forward pass keeps for the backward pass, parameters left out."""
    table = []
    for depth in DEPTHS:
        ours = LinearBottleneck(dim, depth, gain=1.0)
        found = [_saved(module, torch.randn(rows, dim)) / 2**20 for module in (ours, in_sequence(ours))]
        formula = [4 * (rows * dim + (depth - 1) * dim**2) / 2**20, 4 * depth * rows * dim / 2**20]
        table.append([depth, found[0], formula[0], found[1], formula[1], found[0] / found[1]])
    header = ["depth", "ours, MiB", "rows d + (N - 1) d^2", "sequence, MiB", "N rows d", "ours / sequence"]
    return report.markdown(header, table)


def whole_network(device: str, depths: tuple[int, ...]) -> str:
    """A training step of IRMAE's network for MNIST, batch 256, with linear layers over without."""
    batch = [torch.rand(256, 1, 32, 32, device=device)]
    steps = {}
    for depth in (0, *depths):
        for way in ("ours", "sequence") if depth else ("plain",):
            module = convolutional_autoencoder(channels=1).to(device)
            attach_linear_bottleneck(module, dim=128, depth=depth, gain=1.0)
            if way == "sequence":
                module.encoder.linear_bottleneck = in_sequence(module.encoder.linear_bottleneck)
            module.log = lambda *args, **kwargs: None
            steps[f"{way}{depth}"] = _whole_step(module, batch)
    times = interleave(steps, rounds=15, budget=120)
    table = [
        [
            depth,
            milliseconds(times, f"ours{depth}"),
            milliseconds(times, "plain0"),
            ratio(times, f"ours{depth}", "plain0"),
            ratio(times, f"sequence{depth}", "plain0"),
        ]
        for depth in depths
    ]
    return report.markdown(["depth", "ours, ms", "depth 0, ms", "ours / depth 0", "sequence / depth 0"], table)


def on_gpu() -> str:
    """Ways to run the same step on a GPU: precision, compiled, as a graph."""
    table = []
    for depth, dim, rows in itertools.product((2, 8, 16), (128, 256, 512), (256, 1024, 4096)):
        ours = LinearBottleneck(dim, depth, gain=1.0, device="cuda")
        modules = {"ours": ours, "sequence": in_sequence(ours)}
        batch = torch.randn(rows, dim, device="cuda")
        ratios = []
        for settings in ("float32", "tf32", "bf16 autocast"):
            with tf32(settings == "tf32"):
                steps = {name: training_step(m, batch, settings == "bf16 autocast") for name, m in modules.items()}
                ratios.append(ratio(interleave(steps), "ours", "sequence").median)
        eager = training_step(ours, batch)
        ways = {
            "eager": eager,
            "tree": training_step(Tree(ours), batch),
            "compiled": training_step(torch.compile(ours), batch),
            "graph": graphed(ours, batch),
        }
        times = interleave(ways)
        ratios += [ratio(times, way, "eager").median for way in ("tree", "compiled", "graph")]
        table.append([depth, dim, rows, milliseconds(times, "eager"), *ratios])
    header = ["depth", "dim", "rows", "eager, ms", "float32: ours / sequence", "TF32", "bf16 autocast"]
    return report.markdown([*header, "product tree / eager", "torch.compile / eager", "CUDA graph / eager"], table)


def _reached(times: dict[str, Tensor], most: float | None) -> tuple[Ratio, float | str, str]:
    found = ratio(times, "ours", "sequence")
    if most is None:
        return found, "", ""
    return found, most, "yes" if found.median <= most else "no"


def _saved(module: nn.Module, rows: Tensor) -> int:
    storages: dict[int, int] = {}
    own = {parameter.untyped_storage().data_ptr() for parameter in module.parameters()}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = module(rows.requires_grad_())
    assert output.requires_grad
    return sum(storages.values())


def _whole_step(module: nn.Module, batch: list[Tensor]) -> Callable[[], None]:
    optimizer = module.configure_optimizers()

    def step() -> None:
        optimizer.zero_grad()
        module.training_step(batch, 0).backward()
        optimizer.step()

    return step


def _grid(cells: list[dict[str, object]], depth: int, key: str) -> str:
    dims = sorted({found["dim"] for found in cells})
    by_size = {(found["dim"], found["rows"]): found[key] for found in cells if found["depth"] == depth}
    header = [f"depth {depth}", *(f"{rows} rows" for rows in ROWS)]
    return report.markdown(header, [[f"dim {dim}", *(by_size[dim, rows] for rows in ROWS)] for dim in dims])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a few sizes, and nothing is written")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=("cpu", "cuda"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.quick:
        found = cell(8, 128, 256, args.device)
        print(report.markdown(list(found), [list(found.values())]))
        print(saved_memory(128, 1024))
        return
    name = "bottleneck" if args.device == "cpu" else "bottleneck_cuda"
    sections = [
        "A training step is forward and backward, down to the gradient of the input; times of one way over another "
        "are the median of interleaved rounds, with the middle 80 % of them. In sequence: the same weights in one "
        "`nn.Linear` after another. One thread, float32, unless said.",
        "## Sizes with a figure to reach",
        required(args.device),
        "Evaluation composes as training does, in each call: nothing is kept. Collapsed, the bottleneck is one layer.",
    ]
    if args.device == "cpu":
        torch.set_num_threads(2)
        sections += ["The same with two threads:", required(args.device)]
        torch.set_num_threads(1)
    cells = [cell(depth, dim, rows, args.device) for depth, dim, rows in itertools.product(DEPTHS, DIMS, ROWS)]
    sections += ["## Training step over layers in sequence"]
    sections += [_grid(cells, depth, "over_sequence") for depth in DEPTHS]
    sections += ["## Training step over a single `nn.Linear`, the least that any depth could take"]
    sections += [_grid(cells, depth, "over_single") for depth in DEPTHS]
    sections += [
        "All sizes with times and spread: [steps.csv](steps.csv).",
        "## From how many rows composing pays",
        "Composing always, over layer by layer always. The module composes from as many rows as features on.",
        threshold(args.device),
        "## Memory kept for the backward pass, 1024 rows of 128",
        saved_memory(128, 1024),
        "## A training step of IRMAE's network for MNIST, batch 256, Adam included",
        whole_network(args.device, (2, 8, 16)),
    ]
    if args.device == "cuda":
        sections += ["## Precision, compilation and graphs", on_gpu()]
    body = "\n\n".join(sections)
    print(body)
    report.write_csv(name, "steps.csv", cells)
    print(report.write(name, "Cost of the linear bottleneck", body))


if __name__ == "__main__":
    main()
