"""Rank, reconstruction, linear probes and samples on real images, and whether any rank is the best one.

``python benchmarks/real_images.py --data fashion_mnist --data-dir DIR`` trains IRMAE's convolutional networks plain,
with linear layers as in IRMAE and as here, over depths, gains and seeds; and the controls: plain networks of narrower
latents, plain latents cut to their leading directions, and coupled L2 decay. Stopped at any time, the same command goes
on; ``--shard 1/2`` and ``--shard 2/2`` share the training between two processes, and the command without it reports.
``--quick`` takes digits and a few small runs, and writes nothing.
"""

import argparse
import copy
import json
import logging
import sys
import tempfile
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import report
import torch
from lightning.pytorch import LightningDataModule, LightningModule
from matplotlib.figure import Figure

from lightning_rank import truncate_linear_bottleneck
from lightning_rank.metrics import LatentSpectrum

sys.path.append(str(Path(__file__).parents[1] / "examples"))
import data
from autoencoders import convolutional_autoencoder, mlp_autoencoder
from evaluation import AutoencoderEvaluation
from runs import Run, identity
from sweep import RankSweep
from sweep_tables import interval

VARIANCE_RTOL = 1e-2
#: What is compared, the direction in which it is better, and its name in the tables.
MEASURES = {
    "rank/numerical": (0, "rank"),
    "test/error": (-1, "test error"),
    "probe/all": (1, "probe, all labels"),
    "probe/100": (1, "100 a class"),
    "probe/10": (1, "10 a class"),
    "frechet/classifier/gaussian": (-1, "samples, Gaussian"),
    "frechet/classifier/mixture": (-1, "samples, mixture"),
}
FAMILIES = {
    "plain": ("plain", "#888888", "o"),
    "irmae": ("IRMAE style", "#D55E00", "s"),
    "ours": ("ours", "#0072B2", "o"),
    "narrow": ("plain, narrower", "#009E73", "^"),
    "truncated": ("plain, truncated", "#CC79A7", "v"),
    "plain_l2": ("plain, L2", "#E69F00", "<"),
    "ours_l2": ("ours, L2", "#56B4E9", ">"),
}


@dataclass(frozen=True)
class Study:
    """The data, its networks, and the sizes of everything.

    Attributes:
        name: Of the report.
        make_datamodule: Makes the data.
        make_autoencoder: Takes ``dim`` and ``weight_decay``.
        width: Channels of the first convolution, to tell runs of one from those of another.
        dim: Width of the latents.
        widths: Of the narrower plain networks; also the ranks that plain latents are cut to.
        depths: Numbers of linear layers.
        gains: End-to-end gains.
        kept: Numbers of directions of the data that the two strengths of L2 decay keep, were the network linear.
        seeds: Number of seeds.
        max_epochs: Of each run.
        batches: Training batches an epoch.
    """

    name: str
    make_datamodule: Callable[[], LightningDataModule]
    make_autoencoder: Callable[..., LightningModule]
    width: int
    dim: int
    widths: Sequence[int]
    depths: Sequence[int]
    gains: Sequence[float]
    kept: Sequence[int]
    seeds: int
    max_epochs: int
    batches: int | None


def sweeps(study: Study, output_dir: Path, shard: tuple[int, int]) -> dict[str, RankSweep]:
    """All trainings, by family."""
    datamodule = study.make_datamodule()
    limits = {"train": study.batches, "val": None, "test": None}
    config = {"width": study.width}
    classifier = output_dir / f"classifier-{identity(limits)}.pt"

    def sweep(family: str, dim: int = study.dim, **options: Any) -> RankSweep:
        return RankSweep(
            partial(study.make_autoencoder, dim=dim),
            datamodule,
            dim=dim,
            output_dir=output_dir / family,
            name=f"{study.name}_{family}",
            seeds=range(study.seeds),
            max_epochs=study.max_epochs,
            variance_rtol=VARIANCE_RTOL,
            evaluate=AutoencoderEvaluation(datamodule, classifier, VARIANCE_RTOL, limits),
            shard=shard,
            logger="none",
            config=config,
            trainer_options={"limit_train_batches": study.batches, "precision": "bf16-mixed" if _gpu() else "32-true"},
            **options,
        )

    found = {"main": sweep("main", depths=(0, *study.depths), gains=study.gains)}
    for width in study.widths:
        found[f"narrow{width}"] = sweep(f"narrow{width}", width, methods=["plain"], depths=[0])
    for kept, cutoff in zip(study.kept, cutoffs(datamodule, study.kept), strict=True):
        middle = study.depths[len(study.depths) // 2]
        options = {"methods": ["plain", "ours"], "depths": (0, middle), "gains": [1.0], "variance_cutoff": cutoff}
        found[f"l2_{kept}"] = sweep(f"l2_{kept}", **options)
    return found


def cutoffs(datamodule: LightningDataModule, kept: Sequence[int]) -> list[float]:
    """Between the variance of the last direction of the data to keep and that of the first to drop."""
    datamodule.prepare_data()
    datamodule.setup("fit")
    spectrum = None
    for batch in datamodule.val_dataloader():
        rows = batch[0].flatten(1)
        spectrum = spectrum or LatentSpectrum(rows.shape[1])
        spectrum.update(rows)
    variances = spectrum.compute().square()
    return [float((variances[k - 1] * variances[k]).sqrt()) for k in kept]


def truncated_results(sweep: RankSweep, ranks: Sequence[int]) -> list[dict[str, Any]]:
    """The plain networks, measured with their latents cut to the leading directions."""
    results = []
    plain = {run: result for run in sweep.runs if run.method == "plain" and (result := sweep.result(run))}
    for run in plain:
        module = trained(sweep, run)
        for rank in (rank for rank in ranks if rank < min(result["rank/numerical"] for result in plain.values())):
            path = sweep.directory(run) / f"truncated{rank}.json"
            if not path.exists():
                cut, pictures = copy.deepcopy(module), sweep.directory(run) / f"truncated{rank}"
                pictures.mkdir(exist_ok=True)
                torch.manual_seed(run.seed)
                truncate_linear_bottleneck(cut, (x for x, *_ in training_batches(sweep)), rank)
                measured = sweep.evaluate(cut, pictures, run.seed)
                path.write_text(json.dumps({"seed": run.seed, "rank/numerical": rank} | measured))
            results.append(json.loads(path.read_text()))
    return results


def training_batches(sweep: RankSweep) -> Any:
    """Those of an epoch."""
    limit = sweep.trainer_options["limit_train_batches"]
    return (batch for _, batch in zip(range(limit or 10**9), sweep.datamodule.train_dataloader(), strict=False))


def trained(sweep: RankSweep, run: Run) -> LightningModule:
    """The module as the run left it."""
    module = sweep.make_module(run)
    checkpoint = torch.load(sweep.directory(run) / "last.ckpt", weights_only=True, map_location="cpu")
    module.load_state_dict(checkpoint["state_dict"])
    return module.to("cuda" if _gpu() else "cpu").eval()


def _gpu() -> bool:
    return torch.cuda.is_available()


@dataclass(frozen=True)
class Cell:
    """One setting of one family; its runs differ in the seed."""

    family: str
    setting: str
    depth: int
    gain: float | None
    runs: dict[int, dict[str, Any]]

    def interval(self, measure: str) -> tuple[float, float]:
        """Mean over seeds, and half the width of its 95 % interval."""
        return interval([run[measure] for run in self.runs.values() if measure in run])

    def over(self, other: "Cell", measure: str) -> tuple[float, float]:
        """The same of the differences to another cell, seed by seed."""
        return interval([run[measure] - other.runs[seed][measure] for seed, run in self.runs.items()])

    @property
    def name(self) -> str:
        """As in the tables."""
        return f"{FAMILIES[self.family][0]} {self.setting}".strip()


def cells(study: Study, found: dict[str, RankSweep]) -> list[Cell]:
    """What came out, by setting."""
    grouped: dict[tuple[str, str, int, float | None], dict[int, dict[str, Any]]] = {}

    def add(family: str, setting: str, result: dict[str, Any]) -> None:
        key = (family, setting, result.get("depth", 0), result.get("gain"))
        grouped.setdefault(key, {})[result["seed"]] = result

    for name, sweep in found.items():
        for result in sweep.results():
            layers = f"{result['depth']} layers" if result["depth"] else ""
            if name == "main":
                gain = f", gain {result['gain']:g}" if result["gain"] else ""
                add(result["method"], layers + gain, result)
            elif name.startswith("narrow"):
                add("narrow", f"(width {sweep.dim})", result)
            else:
                kept = f"for {name.removeprefix('l2_')} directions"
                add(f"{result['method']}_l2", f"{layers} {kept}".strip(), result)
    for result in truncated_results(found["main"], study.widths):
        add("truncated", f"(to {result['rank/numerical']})", result)
    return [Cell(*key, runs) for key, runs in grouped.items()]


def table(found: Sequence[Cell]) -> str:
    """A row a setting: means over seeds and 95 % intervals."""
    rows = [[cell.name, len(cell.runs), *(_shown(*cell.interval(m)) for m in MEASURES)] for cell in found]
    return report.markdown(["", "seeds", *(name for _, name in MEASURES.values())], rows)


def independence_of_depth(study: Study, found: Sequence[Cell]) -> str:
    """Rank by depth, and how much it changes."""
    rows = []
    for family, gain in (("irmae", None), *(("ours", gain) for gain in study.gains)):
        chosen = {cell.depth: cell for cell in found if (cell.family, cell.gain) == (family, gain)}
        means = [chosen[depth].interval("rank/numerical")[0] for depth in study.depths]
        label = "IRMAE style" if gain is None else f"ours, gain {gain:g}"
        shown = [_shown(*chosen[depth].interval("rank/numerical")) for depth in study.depths]
        rows.append([label, *shown, max(means) / min(means)])
    header = ["rank", *(f"{depth} layers" for depth in study.depths), "largest / smallest"]
    return report.markdown(header, rows)


def optima(study: Study, found: Sequence[Cell]) -> str:
    """For each measure the best rank, and whether it may be called optimal."""
    middle = study.depths[len(study.depths) // 2]
    line = [cell for cell in found if cell.family == "plain" or (cell.family == "ours" and cell.depth == middle)]
    line.sort(key=lambda cell: cell.interval("rank/numerical")[0])
    rows = []
    for measure, (sign, name) in list(MEASURES.items())[2:]:
        if any(measure not in run for cell in found for run in cell.runs.values()):
            continue

        def best(of: Sequence[Cell], measure: str = measure, sign: int = sign) -> Cell:
            return max(of, key=lambda candidate: sign * candidate.interval(measure)[0])

        top = best(line)
        rivals = [line[0], line[-1], *(best([c for c in found if c.family == f]) for f in ("narrow", "truncated"))]
        gaps = [None if rival is top else top.over(rival, measure) for rival in rivals]
        optimal = all(gap is not None and sign * gap[0] > gap[1] for gap in gaps)
        shown = ["it is that end" if gap is None else _shown(*gap, sign=True) for gap in gaps]
        rank = _shown(*top.interval("rank/numerical"))
        rows.append([name, top.name, rank, *shown, "yes" if optimal else "no"])
    header = ["measure", "best", "its rank", "minus the lowest rank", "minus the highest rank"]
    header += ["minus the best narrower", "minus the best truncated", "optimal"]
    return report.markdown(header, rows)


def draw(found: Sequence[Cell], path: Path) -> None:
    """Every measure against rank, a marker a setting."""
    panels = [measure for measure in list(MEASURES)[1:] if all(measure in r for c in found for r in c.runs.values())]
    figure = Figure(figsize=(12, 3.6 * -(-len(panels) // 3)), dpi=100, layout="constrained")
    axes = figure.subplots(-(-len(panels) // 3), 3, squeeze=False).flatten()
    for axis, measure in zip(axes, panels, strict=False):
        for family, (label, colour, marker) in FAMILIES.items():
            of = [cell for cell in found if cell.family == family]
            x, y = ([cell.interval(m)[0] for cell in of] for m in ("rank/numerical", measure))
            bars = [cell.interval(measure)[1] for cell in of]
            axis.errorbar(x, y, bars, fmt=marker, color=colour, label=label, markersize=5, linewidth=1, alpha=0.85)
        axis.set(xlabel="numerical rank of the latents", ylabel=MEASURES[measure][1], xscale="log")
        axis.grid(alpha=0.3)
    for axis in axes[len(panels) :]:
        axis.set_axis_off()
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    figure.savefig(path)


def studies(args: argparse.Namespace) -> Study:
    """What the command line asks for."""
    if args.quick:
        vectors = partial(mlp_autoencoder, hidden=32)
        return Study("digits", data.digits, vectors, 0, 16, (2,), (2,), (0.1,), (4,), 1, 2, None)
    channels, make_data = {"fashion_mnist": (1, data.fashion_mnist), "cifar10": (3, data.folder)}[args.data]
    images = partial(convolutional_autoencoder, channels=channels, width=args.width)
    return Study(
        f"real_images_{args.data}",
        lambda: make_data(args.data_dir, batch_size=128),
        images,
        args.width,
        args.dim,
        (2, 4, 8, 16, 32),
        (2, 4, 8),
        (0.03, 0.1, 0.3, 1.0),
        (4, 16),
        args.seeds,
        args.max_epochs,
        args.batches,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="digits and a few small runs, and nothing is written")
    parser.add_argument("--data", choices=("fashion_mnist", "cifar10"), default="fashion_mnist")
    parser.add_argument(
        "--data-dir", type=Path, default="data", help="for cifar10 a folder of images, train/ and test/"
    )
    parser.add_argument("--output-dir", type=Path, default="outputs/real_images", help="for the runs")
    parser.add_argument("--width", type=int, default=8, help="channels of the first convolution; IRMAE has 32")
    parser.add_argument("--dim", type=int, default=64, help="width of the latents; IRMAE has 128")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each setting")
    parser.add_argument("--max-epochs", type=int, default=15, help="of each run")
    parser.add_argument("--batches", type=int, default=80, help="training batches of 128 images an epoch")
    parser.add_argument("--shard", default="1/1", metavar="I/N", help="train every N-th run, from the I-th")
    args = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    study = studies(args)
    number, shards = map(int, args.shard.split("/"))
    with tempfile.TemporaryDirectory() as scratch:
        output_dir = Path(scratch) if args.quick else args.output_dir / study.name
        found = sweeps(study, output_dir, (number, shards))
        for sweep in found.values():
            sweep.run()
        if shards > 1:
            return
        measured = cells(study, found)
        cutoff = [sweep.variance_cutoff for sweep in found.values() if sweep.variance_cutoff]
        body = body_of(study, measured, cutoff, args)
        print(body)
        if not args.quick:
            path = report.write(study.name, f"Real images: {args.data}", body)
            rows = [
                {"setting": cell.name, "seed": seed} | {m: run[m] for m in MEASURES if m in run}
                for cell in measured
                for seed, run in cell.runs.items()
            ]
            report.write_csv(study.name, "runs.csv", rows)
            print(path)
        draw(measured, (output_dir if args.quick else report.RESULTS / study.name) / "against_rank.png")


def body_of(study: Study, measured: Sequence[Cell], cutoff: Sequence[float], args: argparse.Namespace) -> str:
    """The report."""
    images = "a pass" if study.batches is None else f"{128 * study.batches:,} images an epoch, drawn from all"
    settings = (
        f"{study.seeds} seeds, {study.max_epochs} epochs, {images}; latents {study.dim} wide, "
        f"first convolution {args.width} channels; Adam, learning rate 1e-3, batch 128, no schedule. Rank: directions "
        f"with more than {VARIANCE_RTOL:g} of the largest variance, of the validation latents. Test error: squared, "
        "summed over pixels. Probes: logistic regression on training latents, its strength chosen on validation. "
        "Samples: Fréchet distance on features of a small classifier, of latents drawn from a Gaussian and a mixture "
        f"of ten that were fitted to training latents. L2: coupled decay for variance cutoffs of "
        f"{', '.join(f'{value:.3g}' for value in cutoff)}, gain 1. Intervals are 95 %, over seeds."
    )
    rule = (
        "Among the plain network and ours at the middle depth, the best setting for each measure, and by how much it "
        "is better than others, seed by seed. Its rank is called optimal only if it is neither the lowest nor the "
        "highest, and the intervals of its differences to both ends and to the best of both controls exclude zero."
    )
    return "\n\n".join(
        [
            settings,
            "![All measures against rank](against_rank.png)",
            "## Does the rank depend on depth?",
            independence_of_depth(study, measured),
            "## Is there an optimal rank?",
            rule,
            optima(study, measured),
            "## All settings",
            table(measured),
        ]
    )


def _shown(mean: float, half: float, sign: bool = False) -> str:
    return f"{mean:{'+' if sign else ''}.3g} ± {half:.2g}"


if __name__ == "__main__":
    main()
