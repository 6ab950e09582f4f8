"""What is trained on: data sets, as data modules with a training, a validation and a test split."""

from rank_trainer.data.modules import ImageDataModule, SplitDataModule, TensorDataModule
from rank_trainer.data.sets import celeba, cifar10, digits, fashion_mnist, folder, low_rank, synthetic
from rank_trainer.failures import DataError

__all__ = [
    "DataError",
    "ImageDataModule",
    "SplitDataModule",
    "TensorDataModule",
    "celeba",
    "cifar10",
    "digits",
    "fashion_mnist",
    "folder",
    "low_rank",
    "synthetic",
]
