"""Trained autoencoders side by side: measured, timed, drawn, and compared seed by seed."""

import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter
from torch import Tensor

from lightning_rank.compression import measure_by_rank
from lightning_rank.sampling import LatentSampler
from rank_trainer.data import TensorDataModule
from rank_trainer.evaluation import Encoded, decode, encode, linear_probe, pictures
from rank_trainer.report.tables import markdown, mean_and_interval

MEASURES = {
    "width": "width of the latents",
    "error": "test error",
    "probe": "accuracy of a linear probe",
    "parameters": "parameters",
    "time": "time / that of the plain one",
}


def measure(model: LightningModule, datamodule: TensorDataModule) -> dict[str, float]:
    """What the model is, and what it can do."""
    loaders = (datamodule.train_dataloader, datamodule.val_dataloader, datamodule.test_dataloader)
    splits = [encode(model, iter(loader())) for loader in loaders]
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


def error_by_rank(model: LightningModule, datamodule: TensorDataModule) -> dict[int, float]:
    """Test error with the latents cut to 1, 2, ... directions of the training latents."""
    return measure_by_rank(
        model, datamodule.train_dataloader(), lambda cut: encode(cut, iter(datamodule.test_dataloader())).error
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


def draw(models: dict[str, LightningModule], datamodule: TensorDataModule, sampled: str, path: Path) -> None:
    """A row of test images, one of what each model makes of them, and two of samples of the one that is named."""
    images = datamodule.test.tensors[0][:16]
    encoded: dict[str, Encoded] = {name: encode(model, iter([[images]])) for name, model in models.items()}
    rows = [images, *(decode(models[name], found.latents) for name, found in encoded.items())]
    small = models[sampled]
    codes = encode(small, iter(datamodule.train_dataloader())).latents
    samples = LatentSampler(kind="mixture").fit(codes).sample(32, torch.Generator().manual_seed(0))
    rows += decode(small, samples).split(16)
    pictures.save_grid([row.detach().reshape(-1, *datamodule.image_shape) for row in rows], path)


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The mean over seeds and its 95 % interval, a row a model."""
    lines = [["model", *MEASURES.values()]]
    for name in dict.fromkeys(row["model"] for row in rows):
        values = {key: [row[key] for row in rows if row["model"] == name] for key in MEASURES}
        shown = {key: mean_and_interval(some) for key, some in values.items()}
        shown["parameters"] = f"{statistics.mean(values['parameters']):,.0f}"
        lines.append([name, *shown.values()])
    return markdown(lines)


def gaps(rows: Sequence[dict[str, Any]], of: str) -> str:
    """Test error of one model less that of each other, seed by seed: negative where it is the better one."""
    errors: dict[str, dict[int, float]] = {}
    for row in rows:
        errors.setdefault(row["model"], {})[row["seed"]] = row["error"]
    own = errors.pop(of)
    lines = [["the model", "its test error less that of the model"]]
    lines += [[name, mean_and_interval([own[s] - error for s, error in some.items()])] for name, some in errors.items()]
    return markdown(lines)
