"""The images that autoencoders are trained on to convergence, and a network for each: of rows, in [0, 1]."""

import gzip
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from rank_trainer import data
from rank_trainer.autoencoders import convolutional_autoencoder
from rank_trainer.evaluation.probes import Labelled

BATCH_SIZE = 1000
VALIDATION_IMAGES = 10_000
FILES = [f"{split}-{kind}-ubyte.gz" for split in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")]

EncoderAndDecoder = tuple[nn.Sequential, nn.Sequential]


@dataclass(frozen=True)
class Images:
    """Images as vectors in [0, 1] and their labels, by split: ``"train"``, ``"val"`` and ``"test"``."""

    splits: dict[str, Labelled]
    shape: tuple[int, ...]

    def for_features(self, rows: Tensor) -> Tensor:
        """As a classifier takes them: images, or vectors where they are too small for convolutions."""
        return rows.unflatten(1, self.shape) if self.shape[-1] >= 28 else rows

    def batches(self, split: str) -> Iterator[list[Tensor]]:
        """All of a split, for a classifier."""
        images, labels = self.splits[split]
        yield from map(list, zip(self.for_features(images).split(BATCH_SIZE), labels.split(BATCH_SIZE), strict=True))


def fashion_mnist(directory: Path) -> Images:
    """Fashion-MNIST from its four IDX files, packed; of the training images 10,000 are held out for validation."""
    if missing_files := [name for name in FILES if not (directory / name).exists()]:
        raise SystemExit(
            f"{directory}: expected {', '.join(missing_files)}; Debian's package dataset-fashion-mnist has them"
        )

    def read(name: str, offset: int) -> Tensor:
        return torch.tensor(np.frombuffer(gzip.decompress((directory / name).read_bytes()), np.uint8, offset=offset))

    def split(name: str) -> tuple[Tensor, Tensor]:
        images = read(f"{name}-images-idx3-ubyte.gz", 16).view(-1, 28 * 28).float() / 255
        return images, read(f"{name}-labels-idx1-ubyte.gz", 8).long()

    images, labels = split("train")
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    val, train = order[:VALIDATION_IMAGES], order[VALIDATION_IMAGES:]
    splits = {"train": (images[train], labels[train]), "val": (images[val], labels[val]), "test": split("t10k")}
    return Images(splits, (1, 28, 28))


def cifar10(directory: Path) -> Images:
    """CIFAR-10 from folders ``train/CLASS/*.jpg`` and ``test/CLASS/*.jpg``; a tenth of the training images held out."""
    try:
        module = data.folder(directory)
        module.setup("fit")
        module.setup("test")
    except data.DataError as error:
        raise SystemExit(f"{error}") from error
    parts = {name: getattr(module, name) for name in ("train", "val", "test")}
    return Images({name: (part.images.flatten(1) / 255, part.labels) for name, part in parts.items()}, (3, 32, 32))


def digits(directory: Path | None = None) -> Images:
    """Small images that come with scikit-learn."""
    module = data.digits()
    splits = {name: getattr(module, name).tensors for name in ("train", "val", "test")}
    return Images(splits, (1, 8, 8))


def mlp(features: int, hidden: tuple[int, int], dim: int) -> EncoderAndDecoder:
    """Two hidden layers each way, and a sigmoid."""
    wide, narrow = hidden
    encoder = nn.Sequential(
        nn.Linear(features, wide), nn.ReLU(), nn.Linear(wide, narrow), nn.ReLU(), nn.Linear(narrow, dim)
    )
    decoder = nn.Sequential(
        *(nn.Linear(dim, narrow), nn.ReLU(), nn.Linear(narrow, wide), nn.ReLU()),
        *(nn.Linear(wide, features), nn.Sigmoid()),
    )
    return encoder, decoder


def convolutional(width: int, dim: int) -> EncoderAndDecoder:
    """IRMAE's network for colour images of 32x32, with ``width`` channels after its first convolution."""
    autoencoder = convolutional_autoencoder(width=width, dim=dim)
    # Convolutions on the CPU take a third less time with the channels last.
    encoder = nn.Sequential(nn.Unflatten(1, (3, 32, 32)), *autoencoder.encoder).to(memory_format=torch.channels_last)
    return encoder, nn.Sequential(*autoencoder.decoder, nn.Flatten()).to(memory_format=torch.channels_last)
