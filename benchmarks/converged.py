"""Autoencoders trained for long: is there a best rank, and what gets there?

``python benchmarks/converged.py --data-dir DIR`` trains an MLP on Fashion-MNIST for 30,000 steps, and some of it for
100,000; with ``--data cifar10`` IRMAE's network in small on CIFAR-10 for 10,000, and some of it for 30,000. It takes
plain networks, linear layers as here over gains and depths, linear layers as in IRMAE, and the controls: narrower
latents, latents cut to their leading directions, training that stops early. It measures at several stops: rank, error,
probes with few labels and many, samples. Stopped at any time, the same command goes on from the last stop;
``--shard 1/2`` and ``--shard 2/2`` share the runs between two processes, and ``--report`` adds to the report what is
there. ``--quick`` takes digits and a few short runs.
"""

import json
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import study
import torch
from cells import draw
from converged_measures import Measures, both_ways, truncated
from converged_report import body, draw_over_steps, purposes
from converged_study import BATCH_SIZE, LEARNING_RATE, PLAIN, PLANS, Plan, Setting, missing, settings_of
from converged_verdicts import MEASURES, cells_at
from matplotlib.figure import Figure
from sklearn.exceptions import ConvergenceWarning
from tables import Row, Rows, read_csv
from torch import Tensor, nn

from lightning_rank.nn import LinearBottleneck
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


def rows_of(directory: Path) -> list[Row]:
    """All that was measured, whichever process did."""
    return [json.loads(path.read_text()) for path in sorted(directory.glob("*-seed*/*.json"))]


def with_reported(rows: Rows, path: Path) -> list[Row]:
    """What was measured now, and what else the table of an earlier report has: runs may come from several machines."""
    found: dict[tuple[Any, ...], Row] = {}
    for row in [*(read_csv(path) if path.exists() else ()), *rows]:
        kept = {key: value for key, value in row.items() if value != ""}
        if isinstance(row.get("spectrum"), str):
            kept["spectrum"] = [float(value) for value in row["spectrum"].split()]
        found[tuple(row[key] for key in (*asdict(PLAIN), "seed", "steps"))] = kept
    return list(found.values())


def table_of(rows: Rows) -> list[Row]:
    """Everything but single draws of labels, a column a key."""
    keys = dict.fromkeys(key for row in rows for key in row if not key.endswith("/draws"))
    shown = [row | {"spectrum": " ".join(map(str, row["spectrum"]))} if "spectrum" in row else row for row in rows]
    return [{key: row.get(key, "") for key in keys} for row in shown]


def measure(
    data: Literal["fashion_mnist", "cifar10", "digits"] = "fashion_mnist",
    data_dir: Path = Path("data"),
    output_dir: str | None = None,
    shard: tuple[int, int] = (1, 1),
    report: bool = False,
    steps: int = 0,
) -> study.Tables:
    """Train what is missing, or report what is there; of digits, in a place that is not kept, both."""
    torch.set_flush_denormal(True)  # the moments of units that died
    warnings.simplefilter("ignore", ConvergenceWarning)  # of mixtures: what is reached is judged like any other
    plan = PLANS[data]
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch if data == "digits" else output_dir or f"outputs/{plan.name}")
        if not report:
            directory.mkdir(parents=True, exist_ok=True)
            number, shards = shard
            measures = Measures(plan.read(data_dir), directory / "classifier.pt", plan.draws)
            for setting, seed, stops in list(plan.jobs())[number - 1 :: shards]:
                run(plan, setting, seed, stops, measures, directory)
            if data != "digits":
                return {}
        rows = rows_of(directory)
    if report:
        rows = with_reported(rows, study.RESULTS / plan.name / "runs.csv")
    return {"runs": table_of(rows), "rows": rows}


def verdict(rows: Rows, data: str, steps: int) -> str:
    """What follows for each purpose."""
    return purposes(rows, steps or PLANS[data].stops[-1])


def against_rank(rows: Rows, data: str, steps: int) -> Figure:
    """Every measure against the rank at a stop."""
    return draw(cells_at(rows, steps or PLANS[data].stops[-1]), MEASURES, "rank/effective")


def over_steps(rows: Rows, data: str) -> Figure:
    """Every measure over the training of what is trained longer."""
    longer = [asdict(setting).items() for setting in PLANS[data].longer]
    return draw_over_steps([row for row in rows if any(row.items() >= setting for setting in longer)])


def text(rows: Rows, data: str, steps: int) -> str:
    """The report."""
    plan = PLANS[data]
    return body(rows, steps or plan.stops[-1], settings_of(plan), missing(plan, rows))


STUDY = study.Study(
    name=lambda data: PLANS[data].name,
    title=lambda data: PLANS[data].title,
    measure=measure,
    text=text,
    verdict=verdict,
    figures={"against_rank.png": against_rank, "over_steps.png": over_steps},
    quick={"data": "digits", "report": False},
    flags={
        "data": "that is trained on",
        "data_dir": "the four packed IDX files; of cifar10 folders train/ and test/",
        "output_dir": "for the runs; outputs/NAME, that of the report, if not given",
        "shard": "I/N: every N-th run, from the I-th, counted from 1",
        "report": "no training: the report of what is there and of what it had",
        "steps": "the stop that the report is about; the last that all settings have, if not given",
    },
    unwritten=["rows"],
)
if __name__ == "__main__":
    STUDY.main()
