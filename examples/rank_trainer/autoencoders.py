"""Autoencoders with an ``encoder`` and a ``decoder``, and no idea of rank: the bottleneck is attached from outside.

The functions pass further ``options`` on to :class:`Autoencoder`.
"""

import itertools

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn


class Autoencoder(LightningModule):
    """Any encoder and decoder, trained on the squared error of a sample: summed over features, averaged over samples.

    Args:
        encoder: Maps ``(B, ...)`` to latents ``(B, dim)``.
        decoder: Maps latents back to ``(B, ...)``.
        lr: Learning rate of Adam.
        weight_decay: Coupled L2 decay of all weights, biases excepted.
    """

    def __init__(self, encoder: nn.Module, decoder: nn.Module, lr: float = 1e-3, weight_decay: float = 0.0) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder
        self.lr = lr
        self.weight_decay = weight_decay

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
        """Adam, one group, or another for biases if there is decay: DepthScaledLR adds that of the linear layers."""
        if self.weight_decay == 0:
            return torch.optim.Adam(self.parameters(), lr=self.lr)
        weights = [parameter for parameter in self.parameters() if parameter.ndim > 1]
        biases = [parameter for parameter in self.parameters() if parameter.ndim <= 1]
        groups = [{"params": weights, "weight_decay": self.weight_decay}, {"params": biases}]
        return torch.optim.Adam([group for group in groups if group["params"]], lr=self.lr)

    def _squared_error(self, batch: list[Tensor]) -> Tensor:
        x = batch[0]
        return (self(x) - x).square().flatten(1).sum(1).mean()


def linear_autoencoder(features: int = 64, dim: int = 32, **options: float) -> Autoencoder:
    """One bias-free matrix each way, for data whose rank is known."""
    return Autoencoder(nn.Linear(features, dim, bias=False), nn.Linear(dim, features, bias=False), **options)


def mlp_autoencoder(features: int = 64, hidden: int = 128, dim: int = 32, **options: float) -> Autoencoder:
    """Three layers each way, for small images given as vectors."""
    encoder = nn.Sequential(
        nn.Linear(features, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, dim)
    )
    decoder = nn.Sequential(
        nn.Linear(dim, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, features)
    )
    return Autoencoder(encoder, decoder, **options)


def convolutional_autoencoder(
    channels: int = 3, size: int = 32, width: int = 32, dim: int = 128, **options: float
) -> Autoencoder:
    """The convolutional networks of IRMAE (Jing et al. 2020), for images of 32x32, 64x64 or 128x128 in [0, 1].

    Four convolutions of stride 2, with ``width``, twice, 4 and 8 times as many channels, and one linear layer; back
    by a linear layer to 8x8 and transposed convolutions that halve the channels. ``width=32, dim=128`` at 32x32 is
    the network for MNIST, ``width=128, dim=512`` at 64x64 the one for CelebA.
    """
    if size not in (32, 64, 128):
        raise ValueError(f"size: expected 32, 64 or 128, got {size}")
    widths = [channels, width, 2 * width, 4 * width, 8 * width]
    encoder = nn.Sequential()
    for narrow, wide in itertools.pairwise(widths):
        encoder.extend([nn.Conv2d(narrow, wide, 4, stride=2, padding=1), nn.ReLU()])
    encoder.extend([nn.Flatten(), nn.Linear(widths[-1] * (size // 16) ** 2, dim)])

    doublings = {32: 2, 64: 3, 128: 4}[size]
    wide = width * 2**doublings
    decoder = nn.Sequential(nn.Linear(dim, wide * 8 * 8), nn.ReLU(), nn.Unflatten(1, (wide, 8, 8)))
    for _ in range(doublings):
        decoder.extend([nn.ConvTranspose2d(wide, wide // 2, 4, stride=2, padding=1), nn.ReLU()])
        wide //= 2
    decoder.extend([nn.Conv2d(wide, channels, 3, padding=1), nn.Sigmoid()])
    return Autoencoder(encoder, decoder, **options)
