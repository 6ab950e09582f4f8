"""What the monitor adds to the checkpoints of a fit."""

import importlib
import io
import tempfile
from types import ModuleType
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader


class _Autoencoder(pl.LightningModule):
    """One step per epoch."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.Linear(8, dim), nn.Linear(dim, 8)

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return (self.decoder(self.encoder(batch)) - batch).square().mean()

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.training_step(batch, batch_idx)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.01)


class _Sizes(pl.Callback):
    """Bytes of the monitor's part of a checkpoint, at some epochs."""

    def __init__(self, monitor: Any, at: list[int]) -> None:
        self.monitor, self.at, self.bytes = monitor, at, []

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.current_epoch + 1 in self.at and not trainer.sanity_checking:
            torch.save(self.monitor.state_dict(), file := io.BytesIO())
            self.bytes.append(file.tell())


def checkpoint_bytes(rank: int, package: ModuleType, dim: int, at: list[int]) -> list[int]:
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
        data = DataLoader(torch.randn(16, 8), batch_size=16)
        trainer.fit(_Autoencoder(dim), data, data)
    return sizes.bytes
