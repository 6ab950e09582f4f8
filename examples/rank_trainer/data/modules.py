"""How batches are made: of tensors in memory, and of images that are decoded once."""

from collections.abc import Callable, Sized
from typing import Any, cast

import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, TensorDataset, default_collate
from tqdm.auto import tqdm

#: Decoded splits up to this many bytes are kept in memory, by each process; larger ones are decoded for every batch.
IN_MEMORY_BYTES = 4 * 2**30


class SplitDataModule(LightningDataModule):
    """Loaders of three splits: training shuffled without its last incomplete batch, the others in order.

    Args:
        batch_size: Samples a batch on each device; validation and test batches are four times as large.
        image_shape: ``(C, H, W)`` of what a sample shows, for pictures, if it is given as a vector.
    """

    def __init__(self, batch_size: int = 128, image_shape: tuple[int, int, int] | None = None) -> None:
        super().__init__()
        self.batch_size = batch_size
        self.image_shape = image_shape
        self.train: Dataset
        self.val: Dataset
        self.test: Dataset

    def train_dataloader(self) -> DataLoader:
        """Shuffled, the last incomplete batch left out."""
        drop_last = len(cast(Sized, self.train)) >= self.batch_size
        return DataLoader(self.train, self.batch_size, shuffle=True, drop_last=drop_last, **self._options(self.train))

    def val_dataloader(self) -> DataLoader:
        """In order, in larger batches."""
        return DataLoader(self.val, 4 * self.batch_size, **self._options(self.val))

    def test_dataloader(self) -> DataLoader:
        """As for validation."""
        return DataLoader(self.test, 4 * self.batch_size, **self._options(self.test))

    def _options(self, split: Dataset) -> dict[str, Any]:
        return {}


class TensorDataModule(SplitDataModule):
    """Batches of tensors in memory: ``[rows]`` or ``[rows, labels]``.

    Args:
        train: Tensors of the training samples.
        val: Those to validate on.
        test: Those to test on.
        batch_size: Samples a batch, on each device.
        image_shape: ``(C, H, W)`` of what a row shows, if it shows something.
    """

    def __init__(
        self,
        train: tuple[Tensor, ...],
        val: tuple[Tensor, ...],
        test: tuple[Tensor, ...],
        batch_size: int = 128,
        image_shape: tuple[int, int, int] | None = None,
    ) -> None:
        super().__init__(batch_size, image_shape)
        self.train, self.val, self.test = (TensorDataset(*split) for split in (train, val, test))


class ImageDataModule(SplitDataModule):
    """Batches ``[images, labels]`` of a data set of images: float32 ``(B, C, H, W)`` in [0, 1] and int64 ``(B,)``.

    A split is read when it is first needed, so the test split is not touched before the end. Each image is decoded
    once, into memory, where batches are gathered faster than workers could hand them over; only a split of more than
    :data:`IN_MEMORY_BYTES` stays on disk and is decoded for every batch.

    Args:
        read: Gives the ``"train"``, ``"val"`` or ``"test"`` split, a data set of uint8 images ``(C, H, W)`` and labels.
        download: Called once on each machine, before anything is read.
        batch_size: Images a batch, on each device.
        num_workers: Processes that decode; 0 decodes in the main one.
    """

    def __init__(
        self,
        read: Callable[[str], Dataset],
        download: Callable[[], object] = lambda: None,
        batch_size: int = 128,
        num_workers: int = 0,
    ) -> None:
        super().__init__(batch_size)
        self.read = read
        self.download = download
        self.num_workers = num_workers

    def prepare_data(self) -> None:
        """Download what is missing."""
        self.download()

    def setup(self, stage: str) -> None:
        """Read the splits of a stage, once."""
        for split in {"fit": ("train", "val"), "validate": ("val",)}.get(stage, ("test",)):
            if not hasattr(self, split):
                setattr(self, split, decoded(self.read(split), self.num_workers, title=f"decoding {split} images"))

    def _options(self, split: Dataset) -> dict[str, Any]:
        if isinstance(split, DecodedImages):
            return {"collate_fn": _as_it_is}
        return {
            "collate_fn": _to_unit_interval,
            "num_workers": self.num_workers,
            "persistent_workers": self.num_workers > 0,
        }


class DecodedImages(Dataset):
    """Images and labels in memory, handed out a batch at a time.

    Args:
        images: uint8, shape ``(n, C, H, W)``.
        labels: int64, shape ``(n,)``.
    """

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images = images
        self.labels = labels

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.images[index] / 255, self.labels[index]

    def __getitems__(self, indices: list[int]) -> list[Tensor]:
        """A whole batch at once; what a DataLoader calls where there is such a method."""
        return [self.images[indices] / 255, self.labels[indices]]


def decoded(source: Dataset, num_workers: int = 0, title: str = "decoding images") -> Dataset:
    """The images of ``source`` in memory, or ``source`` itself if they take more than :data:`IN_MEMORY_BYTES`."""
    n = len(cast(Sized, source))
    first: Tensor = source[0][0]
    if n * first.numel() > IN_MEMORY_BYTES:
        return source
    images, labels = torch.empty((n, *first.shape), dtype=torch.uint8), torch.empty(n, dtype=torch.int64)
    start = 0
    hidden = rank_zero_only.rank > 0 or n < 10_000
    with tqdm(desc=title, total=n, unit="image", leave=False, disable=hidden) as bar:
        for some, theirs in DataLoader(source, 256, num_workers=num_workers):
            images[start : start + len(some)], labels[start : start + len(some)] = some, theirs
            start += len(some)
            bar.update(len(some))
    return DecodedImages(images, labels)


def _as_it_is(batch: list[Tensor]) -> list[Tensor]:
    return batch


def _to_unit_interval(samples: list[Any]) -> list[Tensor]:
    images, labels = default_collate(samples)
    return [images / 255, labels]
