"""One training of a sweep, which goes on where it was stopped."""

import json
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from lightning_rank import EffectiveRankMonitor
from rank_trainer.callbacks import Progress, SaveTraining


def train(
    module: LightningModule,
    datamodule: LightningDataModule,
    directory: Path,
    *,
    title: str,
    callbacks: Sequence[Callback],
    logger: Logger | None,
    max_epochs: int,
    variance_rtol: float,
    trainer_options: dict[str, Any],
) -> Trainer:
    """Train to the end, and leave ``last.ckpt`` and ``trained.json`` in the directory of the run.

    Args:
        module: With a ``linear_bottleneck``, whose rank is read.
        datamodule: What to train and validate on.
        directory: Of the run; a checkpoint in it is gone on from.
        title: Of its line of progress.
        callbacks: Of the method.
        logger: Where its curves go.
        max_epochs: In all.
        variance_rtol: Threshold of the numerical rank.
        trainer_options: Further arguments of :class:`lightning.pytorch.Trainer`.
    """
    monitor = EffectiveRankMonitor(variance_rtol=variance_rtol, log_spectrum_every_n_epochs=50)
    every = max(1, max_epochs // 15)
    resumed = _resumable(directory, max_epochs)
    if resumed is not None and (directory / "trained.json").exists():
        # It was only not measured yet: its checkpoint is of its last epoch, and this trains no more.
        max_epochs = json.loads((directory / "trained.json").read_text())["epochs"]
    checkpoint = ModelCheckpoint(directory, "last", every_n_epochs=every, enable_version_counter=False)
    rates = [LearningRateMonitor("epoch")] if logger else []
    saving = SaveTraining(monitor, directory)
    callbacks = [*callbacks, *rates, monitor, checkpoint, Progress(title), saving]
    trainer = make_trainer(max_epochs, callbacks, logger, trainer_options)
    trainer.fit(module, datamodule=datamodule, ckpt_path=resumed)
    return trainer


def make_trainer(
    max_epochs: int, callbacks: Sequence[Callback], logger: Logger | None, options: dict[str, Any]
) -> Trainer:
    """The one way to make it, so that options can be tried before anything is trained."""
    return Trainer(
        max_epochs=max_epochs,
        callbacks=list(callbacks),
        logger=logger or False,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=10,
        num_sanity_val_steps=0,
        **options,
    )


def load_trained(module: LightningModule, directory: Path) -> LightningModule:
    """Give a module the weights that a run ended with."""
    checkpoint = torch.load(directory / "last.ckpt", weights_only=True, map_location="cpu")
    module.load_state_dict(checkpoint["state_dict"])
    return module.eval()


def _resumable(directory: Path, max_epochs: int) -> Path | None:
    """The checkpoint, unless there is none, it is damaged, or it is the last one and what it came to is missing."""
    checkpoint = directory / "last.ckpt"
    if not checkpoint.exists():
        return None
    try:
        finished_epochs = torch.load(checkpoint, weights_only=True, map_location="cpu")["epoch"] + 1
    except (EOFError, RuntimeError, pickle.UnpicklingError) as error:  # a full disk, or killed while it was written
        rank_zero_warn(f"{checkpoint} cannot be read, so its run starts anew ({error})")
        return None
    return checkpoint if finished_epochs < max_epochs or (directory / "trained.json").exists() else None
