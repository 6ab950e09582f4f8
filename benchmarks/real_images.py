"""Rank, reconstruction, linear probes and samples on real images, and whether any rank is the best one.

``python benchmarks/real_images.py --data fashion_mnist --data-dir DIR`` trains IRMAE's convolutional networks plain,
with linear layers as in IRMAE and as here, over depths, gains and seeds; the controls: plain networks of narrower
latents, plain latents cut to their leading directions, and coupled L2 decay; and some of them longer. Stopped at any
time, the same command goes on; ``--shard 1/2`` and ``--shard 2/2`` share the training between two processes, and the
command without it reports. ``--quick`` takes digits and a few small runs, and writes nothing.
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

import real_images_report as findings
import report
import torch
from cells import Cell, draw
from lightning.pytorch import LightningDataModule, LightningModule
from real_images_report import Optimum

from lightning_rank import truncate_linear_bottleneck
from lightning_rank.metrics import LatentSpectrum

sys.path.append(str(Path(__file__).parents[1] / "examples"))
from rank_trainer import RankSweep, data
from rank_trainer.autoencoders import convolutional_autoencoder, mlp_autoencoder
from rank_trainer.evaluation import AutoencoderEvaluation
from rank_trainer.runs import Run, identity

VARIANCE_RTOL = 1e-2
#: What is trained longer at all depths.
DEFAULT_GAIN = 0.1


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
        kept: Numbers of directions of the data that the strengths of L2 decay keep, were the network linear.
        seeds: Number of seeds.
        max_epochs: Of each run.
        longer: Epochs of those that are trained longer.
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
    longer: int
    batches: int | None

    @property
    def middle(self) -> int:
        """The depth at which all gains are compared."""
        return self.depths[len(self.depths) // 2]


def sweeps(study: Study, output_dir: Path, shard: tuple[int, int]) -> dict[str, RankSweep]:
    """All trainings, by family."""
    datamodule = study.make_datamodule()
    limits = {"train": study.batches, "val": None, "test": None}
    config = {"width": study.width}
    classifier = output_dir / f"classifier-{identity(limits)}.pt"

    def sweep(family: str, dim: int = study.dim, max_epochs: int = study.max_epochs, **options: Any) -> RankSweep:
        return RankSweep(
            partial(study.make_autoencoder, dim=dim),
            datamodule,
            dim=dim,
            output_dir=output_dir / family,
            name=f"{study.name}_{family}",
            seeds=range(study.seeds),
            max_epochs=max_epochs,
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
        options = {"methods": ["plain", "ours"], "depths": (0, study.middle), "gains": [1.0], "variance_cutoff": cutoff}
        found[f"l2_{kept}"] = sweep(f"l2_{kept}", **options)
    longer = {"max_epochs": study.longer, "methods": ["plain", "ours"]}
    found["longer"] = sweep("longer", **longer, depths=(0, study.middle), gains=study.gains)
    if others := [depth for depth in study.depths if depth != study.middle]:
        found["longer_depths"] = sweep("longer_depths", **longer, depths=others, gains=[DEFAULT_GAIN])
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


def cells(study: Study, found: dict[str, RankSweep]) -> tuple[list[Cell], list[Cell]]:
    """What came out, by setting: of all, and of those trained longer."""
    grouped: dict[tuple[Any, ...], dict[int, dict[str, Any]]] = {}

    def add(longer: bool, family: str, setting: str, result: dict[str, Any]) -> None:
        key = (longer, family, setting, result.get("depth", 0), result.get("gain"))
        grouped.setdefault(key, {})[result["seed"]] = result

    for name, sweep in found.items():
        for result in sweep.results():
            layers = f"{result['depth']} layers" if result["depth"] else ""
            if name.startswith("narrow"):
                add(False, "narrow", f"(width {sweep.dim})", result)
            elif name.startswith("l2"):
                kept = f"for {name.removeprefix('l2_')} directions"
                add(False, f"{result['method']}_l2", f"{layers} {kept}".strip(), result)
            else:
                gain = f", gain {result['gain']:g}" if result["gain"] else ""
                add(name.startswith("longer"), result["method"], layers + gain, result)
    for result in truncated_results(found["main"], study.widths):
        add(False, "truncated", f"(to {result['rank/numerical']})", result)
    made = {longer: [Cell(*key[1:], runs) for key, runs in grouped.items() if key[0] == longer] for longer in (0, 1)}
    return made[0], made[1]


def studies(args: argparse.Namespace) -> Study:
    """What the command line asks for."""
    if args.quick:
        vectors = partial(mlp_autoencoder, hidden=32)
        return Study("digits", data.digits, vectors, 0, 16, (2,), (2, 4), (0.1,), (4,), 1, 2, 3, None)
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
        (4, 16, 128),
        args.seeds,
        args.max_epochs,
        args.longer,
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
    parser.add_argument("--longer", type=int, default=30, help="epochs of those that are trained longer")
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
        measured, longer = cells(study, found)
        cutoff = [sweep.variance_cutoff for sweep in found.values() if sweep.variance_cutoff]
        body = body_of(study, measured, longer, cutoff, args)
        print(body)
        draw(measured, findings.MEASURES, "rank/numerical", output_dir / "against_rank.png")
        if args.quick:
            return
        print(report.write(study.name, f"Real images: {args.data}", body))
        rows = [
            {"epochs": epochs, "setting": cell.name, "seed": seed}
            | {measure: run.get(measure, "") for measure in findings.MEASURES}
            for epochs, some in ((study.max_epochs, measured), (study.longer, longer))
            for cell in some
            for seed, run in cell.runs.items()
        ]
        report.write_csv(study.name, "runs.csv", rows)
        draw(measured, findings.MEASURES, "rank/numerical", report.RESULTS / study.name / "against_rank.png")


def body_of(
    study: Study, measured: Sequence[Cell], longer: Sequence[Cell], cutoff: Sequence[float], args: argparse.Namespace
) -> str:
    """The report."""
    images = "a pass" if study.batches is None else f"{128 * study.batches:,} images an epoch, drawn from all"
    settings = f"""Seeds 0 to {study.seeds - 1}, {study.max_epochs} epochs, {images}; latents {study.dim} wide, first
convolution {args.width} channels; Adam, learning rate 1e-3, batch 128, no schedule. Rank: directions with more than
{VARIANCE_RTOL:g} of the largest *variance*, of the validation latents. Effective rank: of their *singular values*. Test
error: squared, summed over pixels. Probes: accuracy of logistic regression on training latents, its strength chosen on
validation; all labels are those of the training images that are encoded, as many as an epoch has; they see all
directions, scaled to one variance, also those that the rank does not count, where narrower and
truncated latents have no others. Samples: Fréchet distance on features of a small classifier, of latents drawn from a
Gaussian and from a mixture of ten that were fitted to training latents. L2: coupled decay, gain 1, for cutoffs at
variances of {", ".join(f"{value:.3g}" for value in cutoff)}, which keep {", ".join(map(str, study.kept))} directions of
the data if the network is linear. Intervals are 95 %, over seeds."""
    rule = f"""From the smallest gain at {study.middle} layers over the larger ones to the plain network is a line from
low rank to high. For each measure the best on it, and its lead over the line's ends and over the best of each control,
seed by seed (positive is better). It stands out if all these intervals are above zero. A rank is called best for a
purpose if settings between the ends stand out by all measures, and after {study.longer} epochs the same ones do again,
from the ends; that there is one does not hold if by all measures an end leads all settings between, and is not shown
otherwise. With {study.seeds} seeds only large differences show; and the best of several is chosen by the same runs,
which favours it."""
    line, later = (findings.depth_line(some, study.middle) for some in (measured, longer))

    def optima(measures: Sequence[str]) -> tuple[list[Optimum], list[Optimum]]:
        probed = [measure for measure in measures if any(cell.values(measure) for cell in measured)]
        return [findings.optimum(m, line, measured) for m in probed], [findings.optimum(m, later, []) for m in probed]

    classification, sampling = optima(findings.CLASSIFICATION), optima(findings.SAMPLING)
    return "\n\n".join(
        [
            settings,
            findings.depth_verdict(measured, longer),
            findings.growth(measured, longer),
            findings.optimum_verdict("classification", *classification),
            findings.optimum_verdict("sampling", *sampling),
            "![Test error, accuracies and distances of samples against the rank, a marker a run](against_rank.png)",
            "## Does the rank depend on the depth?",
            findings.depth_table(measured),
            f"After {study.longer} epochs:",
            findings.depth_table(longer),
            "## Is there a best rank?",
            rule,
            findings.optima_table([*classification[0], *sampling[0]]),
            f"After {study.longer} epochs:",
            findings.optima_table([*classification[1], *sampling[1]]),
            "## All settings",
            findings.table(measured),
            f"After {study.longer} epochs:",
            findings.table(longer),
            "Every run: [runs.csv](runs.csv).",
        ]
    )


if __name__ == "__main__":
    main()
