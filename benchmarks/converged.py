"""Autoencoders trained until their rank has stopped to matter: is there a best rank, and what gets there?

``python benchmarks/converged.py --data-dir DIR`` trains an MLP on Fashion-MNIST for 30,000 steps, and some of it for
100,000; with ``--data cifar10`` IRMAE's network in small on CIFAR-10 for 10,000, and most of it for 30,000. It takes
plain networks, linear layers as here over gains and depths, linear layers as in IRMAE, and the controls: narrower
latents, latents cut to their leading directions, training that stops early. It measures at several stops: rank, error,
probes with few labels and many, samples. Stopped at any time, the same command goes on from the last stop;
``--shard 0/2`` and ``--shard 1/2`` share the runs between two processes, and ``--report`` makes the report of what is
there. ``--quick`` takes digits and a few short runs, and writes nothing.
"""

import argparse
import json
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import converged_report as findings
import report
import torch
from cells import draw
from converged_measures import Measures, both_ways, truncated
from converged_study import (
    BATCH_SIZE,
    LEARNING_RATE,
    PLAIN,
    PLANS,
    QUICK,
    Plan,
    Setting,
    missing,
    settings_of,
)
from converged_verdicts import MEASURES, cells_at
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor, nn

from lightning_rank.nn import LinearBottleneck

sys.path.append(str(Path(__file__).parents[1] / "examples"))
from rank_trainer.files import replacing, write_whole


def network(plan: Plan, setting: Setting) -> nn.Sequential:
    """Encoder, bottleneck and decoder; with the same seed the same encoder and decoder, whatever is between."""
    encoder, decoder = plan.network(setting.width)
    if setting.depth == 0:
        return nn.Sequential(encoder, nn.Identity(), decoder)
    init = "default" if setting.family == "irmae" else "orthogonal"
    bottleneck = LinearBottleneck(setting.width, setting.depth, gain=setting.gain or 1.0, init=init)
    return nn.Sequential(encoder, bottleneck, decoder)


def optimizer_of(module: nn.Sequential, setting: Setting) -> torch.optim.Optimizer:
    """Adam; ours has the linear layers at the learning rate over depth."""
    encoder, bottleneck, decoder = module
    scale = setting.depth if setting.family == "ours" else 1
    groups = [{"params": [*encoder.parameters(), *decoder.parameters()]}]
    if setting.depth:
        groups.append({"params": list(bottleneck.parameters()), "lr": LEARNING_RATE / scale})
    return torch.optim.Adam(groups, lr=LEARNING_RATE, fused=True)


def batch_indices(images: int, seed: int, start: int, stop: int) -> Iterator[Tensor]:
    """Of the training steps from ``start`` to ``stop``: shuffled passes, known from the step alone."""
    in_pass = images // BATCH_SIZE
    order = None
    for step in range(start, stop):
        number, place = divmod(step, in_pass)
        if order is None or place == 0:
            order = torch.randperm(images, generator=torch.Generator().manual_seed(100_000 * seed + number))
        yield order[place * BATCH_SIZE :][:BATCH_SIZE]


def train(module: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor, batches: Iterator[Tensor]) -> None:
    """On the squared error of an image: summed over pixels, averaged over images."""
    for batch in batches:
        x = images[batch]
        loss = (module(x) - x).square().sum(1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def run(plan: Plan, setting: Setting, seed: int, stops: Sequence[int], measures: Measures, directory: Path) -> None:
    """Train from where the run was left, and measure at each stop: a file a row, each written as a whole."""
    directory = directory / f"{setting.name}-seed{seed}"
    if all((directory / f"{stop}.json").exists() for stop in stops):
        return
    directory.mkdir(parents=True, exist_ok=True)
    images, _ = measures.images.splits["train"]
    torch.manual_seed(seed)
    module = network(plan, setting)
    optimizer = optimizer_of(module, setting)
    checkpoint, done, seconds = directory / "last.pt", 0, 0.0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        module.load_state_dict(state["module"])
        optimizer.load_state_dict(state["optimizer"])
        done, seconds = state["steps"], state["seconds"]
    for stop in stops:
        if done < stop:
            start = time.perf_counter()
            train(module, optimizer, images, batch_indices(len(images), seed, done, stop))
            done, seconds = stop, seconds + time.perf_counter() - start
            state = {"module": module.state_dict(), "optimizer": optimizer.state_dict()}
            with replacing(checkpoint) as partial:
                torch.save(state | {"steps": done, "seconds": seconds}, partial)
        if done == stop and not (directory / f"{stop}.json").exists():
            start = time.perf_counter()
            for name, row in measured(plan, setting, seed, done, module, measures):
                row |= {"train/seconds": seconds, "measure/seconds": time.perf_counter() - start}
                write_whole(directory / f"{name}.json", json.dumps(row))
            print(f"{time.strftime('%H:%M:%S')} {directory.name} {stop} ({seconds:.0f} s of training)", flush=True)


def measured(
    plan: Plan, setting: Setting, seed: int, steps: int, module: nn.Module, measures: Measures
) -> Iterator[tuple[str, dict[str, Any]]]:
    """The rows of a stop by name: that of the run is the last, so that with it all are there."""
    ways, images = both_ways(module.eval()), measures.images.splits["train"][0]
    if setting == PLAIN and steps >= max(plan.stops):
        with torch.no_grad():
            latents = ways[0](images)
        for rank in (rank for rank in plan.cuts if rank < setting.width and latents.isfinite().all()):
            row = asdict(Setting("truncated", rank)) | {"seed": seed, "steps": steps}
            yield f"{steps}-cut{rank}", row | measures(*truncated(*ways, latents, rank), seed)
    yield f"{steps}", asdict(setting) | {"seed": seed, "steps": steps} | measures(*ways, seed)
    module.train()


def rows_of(directory: Path) -> list[dict[str, Any]]:
    """All that was measured, whichever process did."""
    return [json.loads(path.read_text()) for path in sorted(directory.glob("*-seed*/*.json"))]


def draw_all(plan: Plan, rows: Sequence[dict[str, Any]], steps: int, directory: Path) -> None:
    """Both pictures."""
    draw(cells_at(rows, steps), MEASURES, "rank/effective", directory / "against_rank.png")
    longer = [row for row in rows if any(row.items() >= asdict(setting).items() for setting in plan.longer)]
    findings.draw_over_steps(longer, directory / "over_steps.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="digits and a few short runs, and nothing is written")
    parser.add_argument("--report", action="store_true", help="no training: the report of what is there")
    parser.add_argument("--data", choices=PLANS, default="fashion_mnist")
    parser.add_argument(
        "--data-dir", type=Path, default="data", help="the four packed IDX files; of cifar10 folders train/ and test/"
    )
    parser.add_argument("--output-dir", type=Path, help="for the runs; outputs/NAME, that of the report, if not given")
    parser.add_argument("--shard", default="0/1", metavar="I/N", help="every N-th run, from the I-th")
    parser.add_argument("--steps", type=int, help="the stop that the report is about")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)  # the moments of units that died
    warnings.simplefilter("ignore", ConvergenceWarning)  # of mixtures: what is reached is judged like any other
    shard, shards = map(int, args.shard.split("/"))
    plan = QUICK if args.quick else PLANS[args.data]
    steps = args.steps or plan.stops[-1]
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch) if args.quick else args.output_dir or Path("outputs") / plan.name
        directory.mkdir(parents=True, exist_ok=True)
        if not args.report:
            measures = Measures(plan.read(args.data_dir), directory / "classifier.pt", draws=1 if args.quick else 10)
            for setting, seed, stops in list(plan.jobs())[shard::shards]:
                run(plan, setting, seed, stops, measures, directory)
        if args.quick or args.report:
            rows = rows_of(directory)
            body = findings.body(rows, steps, settings_of(plan), missing(plan, rows))
            print(body)
            draw_all(plan, rows, steps, directory)
        if args.report:
            print(report.write(plan.name, plan.title, body))
            draw_all(plan, rows, steps, report.RESULTS / plan.name)
            kept = ("family", "width", "depth", "gain", "seed", "steps", "train/error", "val/error", *MEASURES)
            report.write_csv(plan.name, "runs.csv", [{key: row.get(key, "") for key in kept} for row in rows])


if __name__ == "__main__":
    main()
