"""Spectra to loggers: a histogram and pictures where a logger takes them, a file where it does not."""

from __future__ import annotations

import csv
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from torch import Tensor

from lightning_rank.callbacks.picture_loggers import all_take_pictures, files_directory, is_tensorboard, is_wandb
from lightning_rank.callbacks.spectrum_picture import spectrum_figure, waterfall_figure


def define_epoch_axis(loggers: Sequence[Any]) -> None:
    """Have W&B draw the rank curves over epochs."""
    for logger in loggers:
        if is_wandb(logger):
            logger.experiment.define_metric("rank/*", step_metric="epoch")


def log_histogram(trainer: Trainer, key: str, singular_values: Tensor) -> None:
    """Send the distribution of ``log10`` of the non-zero singular values, a cheap view of all epochs in one.

    Args:
        trainer: Whose loggers, epoch and step.
        key: Of the histogram.
        singular_values: Shape ``(dim,)``.
    """
    values = singular_values[singular_values > 0].log10()
    if len(values) == 0:
        return
    loggers: list[Any] = trainer.loggers
    for logger in loggers:
        if is_wandb(logger):
            import wandb

            histogram: Any = wandb.Histogram(values.tolist())
            logger.log_metrics({key: histogram, "epoch": trainer.current_epoch}, step=trainer.global_step)
        elif is_tensorboard(logger):
            logger.experiment.add_histogram(key, values, global_step=trainer.global_step)


def send_pictures(
    trainer: Trainer, prefix: str, title: str, spectra: Sequence[Tensor], epochs: Sequence[float], rank: int
) -> None:
    """Send the last spectrum and all spectra so far as pictures, to loggers that take them and if matplotlib is there.

    Args:
        trainer: Whose loggers, epoch and step.
        prefix: Of the keys, before ``spectrum`` and ``waterfall``.
        title: What the spectra are of.
        spectra: The spectra so far.
        epochs: The epoch of each.
        rank: Numerical rank of the last.
    """
    takers: list[Any] = [logger for logger in trainer.loggers if is_wandb(logger) or is_tensorboard(logger)]
    if not takers or importlib.util.find_spec("matplotlib") is None:
        return
    figures = {
        "spectrum": spectrum_figure(spectra[-1], f"{title}, epoch {epochs[-1]:g}", rank),
        "waterfall": waterfall_figure(spectra, epochs, title),
    }
    for logger in takers:
        for name, figure in figures.items():
            if is_wandb(logger):
                logger.log_image(key=f"{prefix}{name}", images=[figure], step=trainer.global_step)
            else:
                logger.experiment.add_figure(f"{prefix}{name}", figure, global_step=trainer.global_step)


def spectra_directory(trainer: Trainer) -> Path | None:
    """Where spectra are written: beside the checkpoints, or with the logs; ``None`` if every logger takes pictures.

    To be called on every process, for Lightning agrees with the others on the directory.
    """
    directory = files_directory(trainer, "rank_spectra")
    return None if all_take_pictures(trainer) else directory


def write_spectra(path: Path, spectra: Sequence[Tensor], epochs: Sequence[float], steps: Sequence[float]) -> None:
    """Write all spectra so far to a CSV file, a row each: epoch, step, and the singular values in descending order.

    Args:
        path: Of the file; its directory is made.
        spectra: The spectra so far.
        epochs: The epoch of each.
        steps: The optimizer steps before each.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["epoch", "step", *(f"sigma_{k}" for k in range(1, len(spectra[0]) + 1))])
        for epoch, step, spectrum in zip(epochs, steps, spectra, strict=True):
            writer.writerow([epoch, step, *spectrum.tolist()])
