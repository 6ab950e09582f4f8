"""A small autoencoder with everything plain, and a trainer without noise."""

from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_rank import LinearBottleneckMixin, attach_linear_bottleneck

FEATURES, DIM = 10, 6


class TinyAutoencoder(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(FEATURES, DIM)
        self.decoder = nn.Linear(DIM, FEATURES)

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.encoder(x))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return (self(batch[0]) - batch[0]).square().sum(1).mean()

    def validation_step(self, batch: list[Tensor], batch_idx: int, dataloader_idx: int = 0) -> None:
        self(batch[0])

    def test_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self(batch[0])

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=1e-2)


class TinyMixedIn(LinearBottleneckMixin, TinyAutoencoder):
    def __init__(self, depth: int = 4, gain: float = 1.0) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.add_linear_bottleneck(dim=DIM, depth=depth, gain=gain, after="encoder")


def tiny(depth: int = 4, gain: float = 1.0, seed: int = 0) -> TinyAutoencoder:
    torch.manual_seed(seed)
    return attach_linear_bottleneck(TinyAutoencoder(), dim=DIM, depth=depth, gain=gain)


def rows(n: int = 32, seed: int = 1) -> Tensor:
    return torch.randn(n, FEATURES, generator=torch.Generator().manual_seed(seed))


def loader(n: int = 32, batch_size: int = 8, seed: int = 1) -> DataLoader:
    return DataLoader(TensorDataset(rows(n, seed)), batch_size)


def trainer(**options: Any) -> Trainer:
    defaults = {
        "accelerator": "cpu",
        "devices": 1,
        "max_epochs": 2,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return Trainer(**defaults | options)
