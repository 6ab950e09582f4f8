"""Rank, reconstruction, linear probes and samples on real images, and whether any rank is the best one.

``python benchmarks/real_images.py --data fashion_mnist --data-dir DIR`` trains IRMAE's convolutional networks plain,
with linear layers as in IRMAE and as here, over depths, gains and seeds; the controls: plain networks of narrower
latents, plain latents cut to their leading directions, and coupled L2 decay; and some of them longer. Stopped at any
time, the same command goes on; ``--shard 1/2`` and ``--shard 2/2`` share the training between two processes, and the
command without it reports. ``--quick`` takes digits and a few small runs.
"""

import copy
import json
import logging
import tempfile
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import study
import torch
from cells import Cell, draw
from lightning.pytorch import LightningDataModule, LightningModule
from matplotlib.figure import Figure
from real_images_report import MEASURES, evidence, verdict_of
from tables import Row, Rows, different, where

from lightning_rank import truncate_linear_bottleneck
from lightning_rank.metrics import LatentSpectrum
from rank_trainer import RankSweep, data
from rank_trainer.autoencoders import convolutional_autoencoder, mlp_autoencoder
from rank_trainer.evaluation import AutoencoderEvaluation
from rank_trainer.runs import Run, identity

VARIANCE_RTOL = 1e-2
#: What is trained longer at all depths.
DEFAULT_GAIN = 0.1
Data = Literal["fashion_mnist", "cifar10", "digits"]


@dataclass(frozen=True)
class Grid:
    """What is trained on the images of a data set.

    Attributes:
        make_datamodule: Takes the folder of the images.
        make_autoencoder: Takes ``dim`` and ``weight_decay``, and the ``width`` of the first convolution.
        widths: Of the narrower plain networks; also the ranks that plain latents are cut to.
        depths: Numbers of linear layers; at the middle one all gains are compared.
        gains: End-to-end gains.
        kept: Numbers of directions of the data that the strengths of L2 decay keep, were the network linear.
    """

    make_datamodule: Callable[[Path], LightningDataModule]
    make_autoencoder: Callable[..., LightningModule]
    widths: Sequence[int] = (2, 4, 8, 16, 32)
    depths: Sequence[int] = (2, 4, 8)
    gains: Sequence[float] = (0.03, 0.1, 0.3, 1.0)
    kept: Sequence[int] = (4, 16, 128)

    @property
    def middle(self) -> int:
        """The depth at which all gains are compared."""
        return self.depths[len(self.depths) // 2]


def _vectors(width: int, **options: float) -> LightningModule:
    return mlp_autoencoder(hidden=width, **options)


GRIDS = {
    "fashion_mnist": Grid(data.fashion_mnist, partial(convolutional_autoencoder, channels=1)),
    "cifar10": Grid(data.folder, partial(convolutional_autoencoder, channels=3)),
    "digits": Grid(lambda directory: data.digits(), _vectors, (2,), (2, 4), (0.1,), (4,)),
}


def sweeps(
    grid: Grid, datamodule: LightningDataModule, output_dir: Path, *, dim: int, width: int, longer: int, **common: Any
) -> dict[str, RankSweep]:
    """All trainings, by family; ``common`` are further options of all."""
    batches = common["trainer_options"]["limit_train_batches"]
    limits = {"train": batches, "val": None, "test": None}
    classifier = output_dir / f"classifier-{identity(limits)}.pt"

    def sweep(family: str, dim: int = dim, **options: Any) -> RankSweep:
        return RankSweep(
            partial(grid.make_autoencoder, width=width, dim=dim),
            datamodule,
            dim=dim,
            output_dir=output_dir / family,
            name=f"{output_dir.name}_{family}",
            variance_rtol=VARIANCE_RTOL,
            evaluate=AutoencoderEvaluation(datamodule, classifier, VARIANCE_RTOL, limits),
            logger="none",
            config={"width": width},
            **(common | options),
        )

    found = {"main": sweep("main", depths=(0, *grid.depths), gains=grid.gains)}
    for narrow in grid.widths:
        found[f"narrow{narrow}"] = sweep(f"narrow{narrow}", narrow, methods=["plain"], depths=[0])
    for kept, cutoff in zip(grid.kept, cutoffs(datamodule, grid.kept), strict=True):
        options = {"methods": ["plain", "ours"], "depths": (0, grid.middle), "gains": [1.0], "variance_cutoff": cutoff}
        found[f"l2_{kept}"] = sweep(f"l2_{kept}", **options)
    later = {"max_epochs": longer, "methods": ["plain", "ours"]}
    found["longer"] = sweep("longer", **later, depths=(0, grid.middle), gains=grid.gains)
    if others := [depth for depth in grid.depths if depth != grid.middle]:
        found["longer_depths"] = sweep("longer_depths", **later, depths=others, gains=[DEFAULT_GAIN])
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


def truncated_results(sweep: RankSweep, ranks: Sequence[int]) -> list[Row]:
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


def rows_of(found: dict[str, RankSweep], grid: Grid) -> list[Row]:
    """What came out, a row a run, with the family and the setting that it is of."""
    rows: list[Row] = []
    for name, sweep in found.items():
        for result in sweep.results():
            layers = f"{result['depth']} layers" if result["depth"] else ""
            gain = f", gain {result['gain']:g}" if result["gain"] else ""
            row = {"longer": name.startswith("longer"), "family": result["method"], "setting": layers + gain}
            if name.startswith("narrow"):
                row |= {"family": "narrow", "setting": f"(width {sweep.dim})"}
            elif name.startswith("l2"):
                kept = f"for {name.removeprefix('l2_')} directions"
                row |= {"family": f"{result['method']}_l2", "setting": f"{layers} {kept}".strip()}
            rows.append(result | row | {"cutoff": sweep.variance_cutoff})
    for result in truncated_results(found["main"], grid.widths):
        setting = {"longer": False, "family": "truncated", "setting": f"(to {result['rank/numerical']})"}
        rows.append({"depth": 0, "gain": None, "cutoff": None} | result | setting)
    return rows


def cells_of(rows: Rows) -> tuple[list[Cell], list[Cell]]:
    """The settings: all, and those trained longer."""
    keys = ("family", "setting", "depth", "gain")
    found = []
    for some in (where(rows, longer=False), where(rows, longer=True)):
        runs = {key: where(some, **dict(zip(keys, key, strict=True))) for key in different(some, *keys)}
        found.append([Cell(*key, {row["seed"]: row for row in ours}) for key, ours in runs.items()])
    return found[0], found[1]


def measure(
    data: Data = "fashion_mnist",
    data_dir: Path = Path("data"),
    output_dir: Path = Path("outputs/real_images"),
    width: int = 8,
    dim: int = 64,
    seeds: int = 3,
    max_epochs: int = 15,
    longer: int = 30,
    batches: int | None = 80,
    shard: str = "1/1",
) -> study.Tables:
    """Train what is missing, of a shard or of all; of digits in a place that is not kept."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    grid = GRIDS[data]
    number, shards = study.shard_of(shard)
    common = {"seeds": range(seeds), "max_epochs": max_epochs, "shard": (number, shards)}
    common["trainer_options"] = {
        "limit_train_batches": batches,
        "precision": "bf16-mixed" if _gpu() else "32-true",
    }
    with tempfile.TemporaryDirectory() as scratch:
        directory = (Path(scratch) if data == "digits" else output_dir) / f"real_images_{data}"
        found = sweeps(grid, grid.make_datamodule(data_dir), directory, dim=dim, width=width, longer=longer, **common)
        for sweep in found.values():
            sweep.run()
        rows = rows_of(found, grid) if shards == 1 else []
    runs = [
        {"epochs": epochs, "setting": cell.name, "seed": seed} | {key: run.get(key, "") for key in MEASURES}
        for epochs, cells in zip((max_epochs, longer), cells_of(rows), strict=True)
        for cell in cells
        for seed, run in cell.runs.items()
    ]
    return {"runs": runs, "rows": rows} if rows else {}


def verdict(rows: Rows, data: Data) -> str:
    """What the report says of it."""
    return verdict_of(GRIDS[data].middle, *cells_of(rows))


def picture(rows: Rows) -> Figure:
    """Every measure against the rank."""
    return draw(cells_of(rows)[0], MEASURES, "rank/numerical")


def text(
    rows: Rows,
    verdict: str,
    data: Data,
    width: int,
    dim: int,
    seeds: int,
    max_epochs: int,
    longer: int,
    batches: int | None,
) -> str:
    """The report."""
    grid = GRIDS[data]
    images = "a pass" if batches is None else f"{128 * batches:,} images an epoch, drawn from all"
    cutoff = [value for value in different(rows, "cutoff") if value]
    return f"""Seeds 0 to {seeds - 1}, {max_epochs} epochs, {images}; latents {dim} wide, first
convolution {width} channels; Adam, learning rate 1e-3, batch 128, no schedule. Rank: directions with more than
{VARIANCE_RTOL:g} of the largest *variance*, of the validation latents. Effective rank: of their *singular values*. Test
error: squared, summed over pixels. Probes: accuracy of logistic regression on training latents, its strength chosen on
validation; all labels are those of the training images that are encoded, as many as an epoch has; they see all
directions, scaled to one variance, also those that the rank does not count, where narrower and
truncated latents have no others. Samples: Fréchet distance on features of a small classifier, of latents drawn from a
Gaussian and from a mixture of ten that were fitted to training latents. L2: coupled decay, gain 1, for cutoffs at
variances of {", ".join(f"{value:.3g}" for value in cutoff)}, which keep {", ".join(map(str, grid.kept))} directions of
the data if the network is linear. Intervals are 95 %, over seeds.

{verdict}

![Test error, accuracies and distances of samples against the rank, a marker a run](against_rank.png)

{evidence(grid.middle, longer, *cells_of(rows))}"""


STUDY = study.Study(
    name=lambda data: f"real_images_{data}",
    title=lambda data: f"Real images: {data}",
    measure=measure,
    text=text,
    verdict=verdict,
    figures={"against_rank.png": picture},
    quick={"data": "digits", "width": 32, "dim": 16, "seeds": 1, "max_epochs": 2, "longer": 3, "batches": None},
    flags={
        "data": "that is trained on",
        "data_dir": "of fashion_mnist the IDX files; of cifar10 folders train/ and test/",
        "output_dir": "for the runs",
        "width": "channels of the first convolution; IRMAE has 32",
        "dim": "width of the latents; IRMAE has 128",
        "seeds": "runs of each setting",
        "max_epochs": "of each run",
        "longer": "epochs of those that are trained longer",
        "batches": "training batches of 128 images an epoch",
        "shard": "I/N: train every N-th run, from the I-th, counted from 1",
    },
    unwritten=["rows"],
)
if __name__ == "__main__":
    STUDY.main()
