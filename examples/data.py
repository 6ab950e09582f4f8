"""Data modules that need no download."""

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset


class TensorDataModule(LightningDataModule):
    """Batches of two tensors in memory.

    Args:
        train: Training rows.
        val: Validation rows.
        batch_size: Rows a batch, on each device.
    """

    def __init__(self, train: Tensor, val: Tensor, batch_size: int = 128) -> None:
        super().__init__()
        self.train = TensorDataset(train)
        self.val = TensorDataset(val)
        self.batch_size = batch_size

    def train_dataloader(self) -> DataLoader:
        """Shuffled, the last incomplete batch left out."""
        return DataLoader(self.train, self.batch_size, shuffle=True, drop_last=len(self.train) >= self.batch_size)

    def val_dataloader(self) -> DataLoader:
        """In order, in larger batches."""
        return DataLoader(self.val, 4 * self.batch_size)


def digits(val_fraction: float = 0.25) -> TensorDataModule:
    """The 1,797 images of handwritten digits that come with scikit-learn, 8x8, as vectors in [0, 1]."""
    from sklearn.datasets import load_digits

    images = torch.tensor(load_digits().data / 16, dtype=torch.float32)
    images = images[torch.randperm(len(images), generator=torch.Generator().manual_seed(0))]
    held_out = int(len(images) * val_fraction)
    return TensorDataModule(images[held_out:], images[:held_out])


def synthetic(rank: int = 8) -> TensorDataModule:
    """Rows of a known rank, the variances of their directions falling linearly from 1 to 1/4."""
    return low_rank(torch.linspace(1, 0.25, rank))


def low_rank(
    variances: Tensor, features: int = 64, noise: float = 0.05, rows: int = 4096, seed: int = 0
) -> TensorDataModule:
    """Rows ``x = A c + noise``: ``A`` orthonormal, ``c`` normal with the given variances."""
    generator = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(features, len(variances), generator=generator)).Q
    codes = torch.randn(2 * rows, len(variances), generator=generator) * variances.sqrt()
    data = codes @ basis.T + noise * torch.randn(2 * rows, features, generator=generator)
    return TensorDataModule(data[:rows], data[rows:])
