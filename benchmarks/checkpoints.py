"""What the monitor adds to the checkpoints of a fit."""

import importlib
import io
import tempfile
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import lightning.pytorch as pl
import torch
from torch.utils.data import DataLoader, TensorDataset

from rank_trainer.autoencoders import linear_autoencoder


class _Sizes(pl.Callback):
    """Bytes of the monitor's part of a checkpoint, at some epochs."""

    def __init__(self, monitor: Any, at: Sequence[int]) -> None:
        self.monitor, self.at, self.bytes = monitor, at, []

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.current_epoch + 1 in self.at and not trainer.sanity_checking:
            torch.save(self.monitor.state_dict(), file := io.BytesIO())
            self.bytes.append(file.tell())


def checkpoint_bytes(rank: int, package: ModuleType, dim: int, at: Sequence[int]) -> list[int]:
    """Of a fit with one step per epoch."""
    importlib.import_module("lightning_rank.callbacks")
    monitor = package.EffectiveRankMonitor("encoder")
    sizes = _Sizes(monitor, at)
    with tempfile.TemporaryDirectory() as directory:
        trainer = pl.Trainer(
            max_epochs=at[-1],
            accelerator="cpu",
            callbacks=[monitor, sizes],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            default_root_dir=directory,
        )
        data = DataLoader(TensorDataset(torch.randn(16, 8)), batch_size=16)
        trainer.fit(linear_autoencoder(8, dim), data, data)
    return sizes.bytes
