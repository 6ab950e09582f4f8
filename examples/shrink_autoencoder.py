"""From a rank to a smaller model: train on digits, find the rank of the latents, and keep that many.

``python examples/shrink_autoencoder.py`` compares the autoencoder as it was trained with what is left of it, cut at the
end, or cut before the end and then trained on; and all with plain ones: cut to the same width, and trained at it. Each
is trained for as many epochs in all. Then it saves, loads, samples and traverses. Nothing to download, some minutes.
"""

import argparse
import copy
import logging
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything

from lightning_rank import (
    DepthScaledLR,
    LatentTraversal,
    attach_linear_bottleneck,
    collapse_linear_bottleneck,
    load_truncated,
    truncate_linear_bottleneck,
)
from rank_trainer import data
from rank_trainer.autoencoders import mlp_autoencoder
from rank_trainer.callbacks import KeepWeights
from rank_trainer.comparison import draw, draw_curves, error_by_rank, gaps, measure, table, times
from rank_trainer.report.tables import csv_text

DIM = 32
SHRUNK, TRAINED_ON = "low rank, truncated", "low rank, truncated, trained on"
QUIET = {
    "accelerator": "cpu",
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


def new(depth: int, dim: int = DIM) -> LightningModule:
    """An autoencoder with that many linear layers; none for a plain one."""
    return attach_linear_bottleneck(mlp_autoencoder(dim=dim), dim=dim, depth=depth, gain=0.1)


def train(
    digits: data.TensorDataModule, seed: int, max_epochs: int, depth: int, dim: int = DIM, keep: int = 0
) -> tuple[LightningModule, LightningModule]:
    """Train one: as it is at the end, and as it was after ``keep`` epochs."""
    seed_everything(seed, verbose=False)
    model, kept = new(depth, dim), KeepWeights(keep or max_epochs)
    trainer = Trainer(max_epochs=max_epochs, callbacks=[kept, *([DepthScaledLR()] if depth else [])], **QUIET)
    trainer.fit(model, digits.train_dataloader())
    earlier = new(depth, dim)
    earlier.load_state_dict(kept.state)
    return model.eval(), earlier.eval()


def train_on(model: LightningModule, digits: data.TensorDataModule, seed: int, max_epochs: int) -> LightningModule:
    """Train what was cut, with an optimizer of its own: the one from before holds layers that are gone."""
    seed_everything(seed, verbose=False)
    Trainer(max_epochs=max_epochs, **QUIET).fit(model.train(), digits.train_dataloader())
    return model.eval()


def shrink(seed: int, max_epochs: int, more_epochs: int, directory: Path) -> list[dict[str, Any]]:
    """Train, truncate, train on, measure, save, load and draw: a row for each model."""
    digits = data.digits()
    epochs = max_epochs + more_epochs
    (plain, plain_then), (low, low_then) = (train(digits, seed, epochs, depth, keep=max_epochs) for depth in (0, 4))
    batches, at_cut = digits.train_dataloader(), copy.deepcopy(low_then)
    cut_low, cut_plain = copy.deepcopy(low), copy.deepcopy(plain)
    done = truncate_linear_bottleneck(low_then, batches, fold=True)  # the rank is chosen when training is cut
    for model in (plain_then, cut_low, cut_plain):
        truncate_linear_bottleneck(model, batches, rank=done.rank, fold=True)
    narrow, _ = train(digits, seed, epochs, depth=0, dim=done.rank)
    low_then, plain_then = (train_on(model, digits, seed, more_epochs) for model in (low_then, plain_then))
    if seed == 0:
        print(done, end="\n\n")
        curves = {name: error_by_rank(model, digits) for name, model in (("plain", plain), ("low rank", low))}
        draw_curves(curves, {done.rank: measure(narrow, digits)["error"]}, directory / "by_rank.png")

    path = directory / "truncated.pt"
    torch.save(cut_low.state_dict(), path)
    loaded = new(4).eval()
    load_truncated(loaded, torch.load(path, weights_only=True))
    collapse_linear_bottleneck(low)  # four layers as one: what it takes to run it
    models = {
        "plain": plain,
        "plain, truncated": cut_plain,
        "plain, truncated, trained on": plain_then,
        "plain, trained narrow": narrow,
        "low rank": low,
        SHRUNK: loaded,
        TRAINED_ON: low_then,
    }
    taken = times(models, digits.test.tensors[0])
    if seed == 0:
        draw(models, digits, SHRUNK, directory / "shrink.png")
        # A row for each direction of the latents when they were cut: those beyond the rank change nothing.
        traversal = LatentTraversal(image_shape=(1, 8, 8), n_directions=done.rank + 2)
        trainer = Trainer(callbacks=[traversal], default_root_dir=directory, **QUIET)
        trainer.validate(at_cut, digits.val_dataloader(), verbose=False)
    return [
        {"model": name, "seed": seed} | measure(model, digits) | {"time": taken[name]} for name, model in models.items()
    ]


def main(argv: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Do it for each seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5, help="number of seeds")
    parser.add_argument("--max-epochs", type=int, default=150, help="epochs before the cut")
    parser.add_argument(
        "--more-epochs", type=int, default=75, help="epochs after it; what is not cut has as many in all"
    )
    parser.add_argument("--output-dir", type=Path, default=Path("outputs/shrink_autoencoder"), help="for what is left")
    args = parser.parse_args(argv)
    if args.seeds < 1:
        parser.error(f"--seeds: expected 1 or more, got {args.seeds}")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", ".*does not have many workers.*|.*no `val_dataloader`.*")
    warnings.filterwarnings("ignore", ".*LeafSpec.*", category=FutureWarning)
    args.output_dir.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)  # faster than two for models of this size
    rows = [
        row for seed in range(args.seeds) for row in shrink(seed, args.max_epochs, args.more_epochs, args.output_dir)
    ]
    (args.output_dir / "results.csv").write_text(csv_text(rows))
    print(table(rows), f"{TRAINED_ON}, seed by seed:", gaps(rows, TRAINED_ON), sep="\n\n")
    print(f"\nwritten to {args.output_dir}: results.csv, shrink.png, by_rank.png, latent_traversals/, truncated.pt")
    return rows


if __name__ == "__main__":
    main()
