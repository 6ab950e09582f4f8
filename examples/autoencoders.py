"""Autoencoders with an ``encoder`` and a ``decoder``, and no idea of rank: the bottleneck is attached from outside."""

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn


class Autoencoder(LightningModule):
    """Any encoder and decoder, trained on the squared error of a sample: summed over features, averaged over samples.

    Args:
        encoder: Maps ``(B, ...)`` to latents ``(B, dim)``.
        decoder: Maps latents back to ``(B, ...)``.
        lr: Learning rate of Adam.
    """

    def __init__(self, encoder: nn.Module, decoder: nn.Module, lr: float = 1e-3) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder
        self.lr = lr

    def forward(self, x: Tensor) -> Tensor:
        """Reconstruct ``x``."""
        return self.decoder(self.encoder(x))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """Squared error of a batch."""
        loss = self._squared_error(batch)
        self.log("train/loss", loss, on_step=False, on_epoch=True, sync_dist=True)
        return loss

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        """Squared error of a batch that was not trained on."""
        self.log("val/loss", self._squared_error(batch), batch_size=len(batch[0]), sync_dist=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam, one group: DepthScaledLR makes it two."""
        return torch.optim.Adam(self.parameters(), lr=self.lr)

    def _squared_error(self, batch: list[Tensor]) -> Tensor:
        x = batch[0]
        return (self(x) - x).square().flatten(1).sum(1).mean()


def linear_autoencoder(features: int = 64, dim: int = 32) -> Autoencoder:
    """One bias-free matrix each way, for data whose rank is known."""
    return Autoencoder(nn.Linear(features, dim, bias=False), nn.Linear(dim, features, bias=False))


def mlp_autoencoder(features: int = 64, hidden: int = 128, dim: int = 32) -> Autoencoder:
    """Three layers each way, for small images given as vectors."""
    encoder = nn.Sequential(
        nn.Linear(features, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, dim)
    )
    decoder = nn.Sequential(
        nn.Linear(dim, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, features)
    )
    return Autoencoder(encoder, decoder)
