"""From a rank to a smaller model: train on digits, find the rank of the latents, and keep that many.

``python examples/shrink_autoencoder.py`` compares the autoencoder as it was trained with what is left of it, cut at the
end, or cut before the end and then trained on; and all with plain ones: cut to the same width, and trained at it. Each
is trained for as many epochs in all. Then it saves, loads, samples and traverses. Nothing to download, some minutes.
"""

import argparse
import copy
import logging
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter
from torch import Tensor

from lightning_rank import (
    DepthScaledLR,
    LatentTraversal,
    attach_linear_bottleneck,
    collapse_linear_bottleneck,
    load_truncated,
    truncate_linear_bottleneck,
)
from lightning_rank.compression import measure_by_rank
from lightning_rank.sampling import LatentSampler
from rank_trainer import data
from rank_trainer.autoencoders import mlp_autoencoder
from rank_trainer.evaluation import Encoded, decode, encode, linear_probe, pictures
from rank_trainer.report.tables import csv_text, markdown, mean_and_interval

DIM = 32
SHRUNK, TRAINED_ON = "low rank, truncated", "low rank, truncated, trained on"
QUIET = {
    "accelerator": "cpu",
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}
MEASURES = {
    "width": "width of the latents",
    "error": "test error",
    "probe": "accuracy of a linear probe",
    "parameters": "parameters",
    "time": "time / that of the plain one",
}


def new(depth: int, dim: int = DIM) -> LightningModule:
    """An autoencoder with that many linear layers; none for a plain one."""
    return attach_linear_bottleneck(mlp_autoencoder(dim=dim), dim=dim, depth=depth, gain=0.1)


class KeepWeights(Callback):
    """Keeps the weights as they are after some epochs."""

    def __init__(self, epochs: int) -> None:
        self.epochs = epochs
        self.state: dict[str, Tensor] = {}

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Copy them."""
        if trainer.current_epoch + 1 == self.epochs:
            self.state = copy.deepcopy(pl_module.state_dict())


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


def measure(model: LightningModule, digits: data.TensorDataModule) -> dict[str, float]:
    """What the model is, and what it can do."""
    splits = [encode(model, iter(loader())) for loader in _loaders(digits)]
    train, val, test = ((split.latents, split.labels) for split in splits)
    return {
        "width": splits[0].latents.shape[1],
        "error": splits[2].error,
        "probe": linear_probe(train, val, test),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
    }


@torch.no_grad()
def times(models: dict[str, LightningModule], images: Tensor, rounds: int = 30) -> dict[str, float]:
    """Time of a forward pass over that of the first model: the median of rounds in which all take their turn."""
    taken: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(rounds):
        for name, model in models.items():
            start = time.perf_counter()
            for _ in range(10):
                model(images)
            taken[name].append(time.perf_counter() - start)
    first = next(iter(taken.values()))
    return {
        name: statistics.median(a / b for a, b in zip(seconds, first, strict=True)) for name, seconds in taken.items()
    }


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
        draw(models, digits, directory / "shrink.png")
        # A row for each direction of the latents when they were cut: those beyond the rank change nothing.
        traversal = LatentTraversal(image_shape=(1, 8, 8), n_directions=done.rank + 2)
        trainer = Trainer(callbacks=[traversal], default_root_dir=directory, **QUIET)
        trainer.validate(at_cut, digits.val_dataloader(), verbose=False)
    return [
        {"model": name, "seed": seed} | measure(model, digits) | {"time": taken[name]} for name, model in models.items()
    ]


def error_by_rank(model: LightningModule, digits: data.TensorDataModule) -> dict[int, float]:
    """Test error with the latents cut to 1, 2, ... directions of the training latents."""
    return measure_by_rank(
        model, digits.train_dataloader(), lambda cut: encode(cut, iter(digits.test_dataloader())).error
    )


def draw_curves(curves: dict[str, dict[int, float]], narrow: dict[int, float], path: Path) -> None:
    """What one training says of every rank, and what networks trained at a width reach."""
    figure = Figure(figsize=(5.6, 3.6), dpi=120, layout="constrained")
    axes = figure.subplots()
    for name, errors in curves.items():
        axes.plot(list(errors), list(errors.values()), marker="o", markersize=3, label=f"{name}, cut to that rank")
    axes.plot(list(narrow), list(narrow.values()), "k^", label="plain, trained narrow")
    axes.set(xlabel="directions of the latents", ylabel="test error", yscale="log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(1.5, 0.4)))
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    figure.savefig(path)


def draw(models: dict[str, LightningModule], digits: data.TensorDataModule, path: Path) -> None:
    """A row of test images, one of what each model makes of them, and two of samples of the last."""
    images = digits.test.tensors[0][:16]
    encoded: dict[str, Encoded] = {name: encode(model, iter([[images]])) for name, model in models.items()}
    rows = [images, *(decode(models[name], found.latents) for name, found in encoded.items())]
    small = models[SHRUNK]
    codes = encode(small, iter(digits.train_dataloader())).latents
    samples = LatentSampler(kind="mixture").fit(codes).sample(32, torch.Generator().manual_seed(0))
    rows += decode(small, samples).split(16)
    pictures.save_grid([row.detach().reshape(-1, 1, 8, 8) for row in rows], path)


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The mean over seeds and its 95 % interval, a row a model."""
    lines = [["model", *MEASURES.values()]]
    for name in dict.fromkeys(row["model"] for row in rows):
        values = {key: [row[key] for row in rows if row["model"] == name] for key in MEASURES}
        shown = {key: mean_and_interval(some) for key, some in values.items()}
        shown["parameters"] = f"{statistics.mean(values['parameters']):,.0f}"
        lines.append([name, *shown.values()])
    return markdown(lines)


def gaps(rows: Sequence[dict[str, Any]], of: str = TRAINED_ON) -> str:
    """Test error of one model less that of each other, seed by seed: negative where it is the better one."""
    errors: dict[str, dict[int, float]] = {}
    for row in rows:
        errors.setdefault(row["model"], {})[row["seed"]] = row["error"]
    own = errors.pop(of)
    lines = [["the model", "its test error less that of the model"]]
    lines += [[name, mean_and_interval([own[s] - error for s, error in some.items()])] for name, some in errors.items()]
    return markdown(lines)


def _loaders(digits: data.TensorDataModule) -> tuple[Callable, ...]:
    return digits.train_dataloader, digits.val_dataloader, digits.test_dataloader


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
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", ".*does not have many workers.*|.*no `val_dataloader`.*")
    warnings.filterwarnings("ignore", ".*LeafSpec.*", category=FutureWarning)
    args.output_dir.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)  # faster than two for models of this size
    rows = [
        row for seed in range(args.seeds) for row in shrink(seed, args.max_epochs, args.more_epochs, args.output_dir)
    ]
    (args.output_dir / "results.csv").write_text(csv_text(rows))
    print(table(rows), f"{TRAINED_ON}, seed by seed:", gaps(rows), sep="\n\n")
    print(f"\nwritten to {args.output_dir}: results.csv, shrink.png, by_rank.png, latent_traversals/, truncated.pt")
    return rows


if __name__ == "__main__":
    main()
