"""Train autoencoders over depths and methods, and see what rank their latents get.

``python examples/rank_sweep.py`` trains on scikit-learn's digits, with nothing to download, in under two minutes. Each
method, depth, gain and seed is a run of its own; stopped at any time, the same command goes on with what is missing.
"""

import argparse
import logging
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, LightningModule

from lightning_rank.functional import VARIANCE_RTOL
from rank_trainer import METHODS, RankSweep, data
from rank_trainer.autoencoders import convolutional_autoencoder, linear_autoencoder, mlp_autoencoder
from rank_trainer.evaluation import AutoencoderEvaluation
from rank_trainer.failures import stops_all
from rank_trainer.loggers import LOGGERS
from rank_trainer.runs import identity, shard_of

DATA = ("digits", "synthetic", "fashion_mnist", "cifar10", "celeba", "folder")


@dataclass(frozen=True)
class DataChoice:
    """Data, the autoencoder that suits it, and how long it takes."""

    datamodule: LightningDataModule
    make_autoencoder: Callable[..., LightningModule]
    dim: int
    max_epochs: int = 100


def choose(args: argparse.Namespace) -> DataChoice:
    """The data that the command line names, with the networks of IRMAE for images."""
    files = {"data_dir": args.data_dir, "batch_size": args.batch_size, "num_workers": args.num_workers}
    match args.data:
        case "digits":
            return DataChoice(data.digits(args.batch_size), mlp_autoencoder, dim=32, max_epochs=150)
        case "synthetic":
            return DataChoice(data.synthetic(batch_size=args.batch_size), linear_autoencoder, dim=32, max_epochs=30)
        case "fashion_mnist":
            grey = partial(convolutional_autoencoder, channels=1)
            return DataChoice(data.fashion_mnist(**files), grey, dim=128)
        case "cifar10":
            return DataChoice(data.cifar10(**files), convolutional_autoencoder, dim=128)
        case "celeba":
            return DataChoice(data.celeba(**files), _large_autoencoder(64), dim=512)
    images = data.folder(image_size=args.image_size, **files)
    if args.image_size == 32:
        return DataChoice(images, convolutional_autoencoder, dim=128)
    return DataChoice(images, _large_autoencoder(args.image_size), dim=512)


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--data", choices=DATA, default="digits", help="what to train on")
    parser.add_argument("--data-dir", type=Path, default="data", help="where its files are, or are downloaded to")
    parser.add_argument("--image-size", type=int, choices=(32, 64, 128), default=32, help="for folder: resized to this")
    parser.add_argument("--batch-size", type=int, default=128, help="on each device")
    parser.add_argument("--num-workers", type=int, default=0, help="processes that decode images")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), help="plain takes depth 0 only")
    parser.add_argument("--depths", nargs="+", type=int, default=[0, 2, 4, 8], help="numbers of linear layers")
    parser.add_argument(
        "--gains",
        "--gain",
        nargs="+",
        type=float,
        help="end-to-end gains of ours: the knob of the rank; 0.1 if not given",
    )
    parser.add_argument(
        "--variance-cutoff",
        type=float,
        help="smallest variance of the data worth keeping: all methods get the coupled L2 decay that cuts below it, "
        "and ours gain 1",
    )
    parser.add_argument("--seeds", type=int, default=1, help="number of seeds")
    parser.add_argument("--first-seed", type=int, default=0, help="seeds are counted from here")
    parser.add_argument("--max-epochs", type=int, help="epochs of each run; the default depends on the data")
    for split in ("train", "val", "test"):
        parser.add_argument(
            f"--limit-{split}-batches",
            type=_limit,
            help="so many batches, or a share such as 0.1; all if not given",
        )
    parser.add_argument("--variance-rtol", type=float, default=VARIANCE_RTOL, help="threshold of the numerical rank")
    parser.add_argument("--shard", type=shard_of, default=(1, 1), metavar="I/N", help="train every N-th run, from I on")
    parser.add_argument("--logger", choices=LOGGERS, default="wandb", help="where the curves go")
    parser.add_argument("--project", default="lightning-rank", help="W&B project")
    parser.add_argument("--output-dir", type=Path, help="default: outputs/rank_sweep_DATA")
    parser.add_argument("--accelerator", default="auto", help="as Trainer takes it")
    parser.add_argument("--devices", default="auto", help="as Trainer takes it")
    parser.add_argument("--num-nodes", type=int, default=1, help="as Trainer takes it")
    parser.add_argument("--strategy", default="auto", help="as Trainer takes it")
    parser.add_argument("--precision", default="32-true", help="as Trainer takes it")
    args = parser.parse_args(argv)
    if args.gains and args.variance_cutoff:
        parser.error("--gains with --variance-cutoff: the cutoff holds for gain 1, leave one of them out")
    for name, least in (("seeds", 1), ("batch_size", 1), ("num_workers", 0)):
        if getattr(args, name) < least:
            parser.error(f"--{name.replace('_', '-')}: expected {least} or more, got {getattr(args, name)}")
    if args.output_dir is not None and os.path.isfile(args.output_dir):
        parser.error(f"--output-dir: expected a folder, got the file {args.output_dir}")
    return args


def main(argv: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Run the sweep that the command line asks for."""
    args = parse_args(argv)
    # One line a run is what is wanted here.
    os.environ.setdefault("WANDB_SILENT", "true")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", ".*does not have many workers.*")
    warnings.filterwarnings("ignore", ".*LeafSpec.*", category=FutureWarning)
    warnings.filterwarnings("ignore", "Checkpoint directory .* exists and is not empty")
    choice = choose(args)
    name = f"rank_sweep_{args.data}"
    output_dir = args.output_dir or Path("outputs") / name
    limits = {split: getattr(args, f"limit_{split}_batches") for split in ("train", "val", "test")}
    config = {"data": args.data, "batch_size": args.batch_size, "limits": limits}
    if args.data == "folder":
        config |= {"data_dir": str(args.data_dir), "image_size": args.image_size}
    classifier = output_dir / f"classifier-{identity(config)}.pt"
    try:
        sweep = RankSweep(
            choice.make_autoencoder,
            choice.datamodule,
            dim=choice.dim,
            output_dir=output_dir,
            name=name,
            methods=args.methods,
            depths=args.depths,
            gains=args.gains or [1.0 if args.variance_cutoff else 0.1],
            seeds=range(args.first_seed, args.first_seed + args.seeds),
            max_epochs=choice.max_epochs if args.max_epochs is None else args.max_epochs,
            variance_cutoff=args.variance_cutoff,
            variance_rtol=args.variance_rtol,
            evaluate=AutoencoderEvaluation(choice.datamodule, classifier, args.variance_rtol, limits),
            shard=args.shard,
            logger=args.logger,
            project=args.project,
            config=config,
            trainer_options={
                "accelerator": args.accelerator,
                "devices": args.devices,
                "num_nodes": args.num_nodes,
                "strategy": args.strategy,
                "precision": args.precision,
                "limit_train_batches": limits["train"],
                "limit_val_batches": limits["val"],
            },
        )
    except ValueError as error:
        raise SystemExit(f"error: {error}") from error
    if "WANDB_SWEEP_ID" in os.environ and len(sweep.runs) > 1:
        raise SystemExit(
            f"error: for `wandb agent` a command is one run, this one is {len(sweep.runs)}; see sweep.yaml"
        )
    try:
        results = sweep.run()
    except Exception as error:
        if not stops_all(error):
            raise  # a bug, which keeps its traceback
        raise SystemExit(f"error: {error}\nFinished runs are kept; the same command goes on from here.") from error
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        # Left to the interpreter's exit, the threads of gloo abort a process now and then.
        torch.distributed.destroy_process_group()
    if sweep.failures:
        raise SystemExit(1)
    return results


def _large_autoencoder(size: int) -> Callable[..., LightningModule]:
    return partial(convolutional_autoencoder, size=size, width=128, dim=512)


def _limit(text: str) -> int | float:
    """A number of batches, or with a point in it a share of them."""
    value = float(text) if "." in text else int(text)
    if value <= 0 or (isinstance(value, float) and value > 1):
        raise argparse.ArgumentTypeError(f"expected a number of batches, or a share from 0.0 to 1.0, got {text}")
    return value


if __name__ == "__main__":
    main(sys.argv[1:])
