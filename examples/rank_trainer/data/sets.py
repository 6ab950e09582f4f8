"""The data sets of the sweep, each as a data module with a training, a validation and a test split.

Validation data is never trained on. Where a data set has no validation split of its own, a tenth of its training data,
drawn with a fixed seed, is held out.
"""

import pickle
import tarfile
import traceback
import zipfile
import zlib
from collections.abc import Callable, Sequence
from http.client import HTTPException
from os.path import exists, isdir  # Path's raise where a folder may not be entered
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset
from torchvision.datasets import CIFAR10, CelebA, FashionMNIST, ImageFolder
from torchvision.datasets.folder import is_image_file
from torchvision.datasets.utils import extract_archive
from torchvision.transforms import v2

from rank_trainer.data.modules import ImageDataModule, TensorDataModule
from rank_trainer.failures import DataError, in_words, out_of_space

#: The attribute of CelebA's forty that is its label here.
CELEBA_LABEL = "Smiling"
#: What torchvision raises over the network, archives and the files in them. Anything else is a bug, and so are the
#: second ones, which are kinds of the first, and what is raised outside of torchvision: all keep their traceback.
UNREADABLE = (
    *(OSError, EOFError, RuntimeError, ValueError, TypeError, KeyError, AssertionError, HTTPException),
    *(zlib.error, tarfile.TarError, zipfile.BadZipFile, pickle.UnpicklingError),
)
NOT_OF_DATA = (DataError, NotImplementedError, RecursionError)


def digits(batch_size: int = 128) -> TensorDataModule:
    """The 1,797 images of handwritten digits that come with scikit-learn, 8x8, as vectors in [0, 1].

    A quarter is held out, half of it for validation and half for the test.
    """
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    images, labels = torch.tensor(images / 16, dtype=torch.float32)[order], torch.tensor(labels)[order]
    val, test, train = slice(0, 224), slice(224, 449), slice(449, None)
    splits = [(images[part], labels[part]) for part in (train, val, test)]
    return TensorDataModule(*splits, batch_size=batch_size, image_shape=(1, 8, 8))


def synthetic(rank: int = 8, batch_size: int = 128) -> TensorDataModule:
    """Rows of a known rank, the variances of their directions falling linearly from 1 to 1/4."""
    return low_rank(torch.linspace(1, 0.25, rank), batch_size=batch_size)


def low_rank(
    variances: Tensor, features: int = 64, noise: float = 0.05, rows: int = 4096, seed: int = 0, batch_size: int = 128
) -> TensorDataModule:
    """Rows ``x = A c + noise``, as many for each split: ``A`` orthonormal, ``c`` normal with the given variances."""
    generator = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(features, len(variances), generator=generator)).Q

    def draw(n: int) -> Tensor:
        codes = torch.randn(n, len(variances), generator=generator) * variances.sqrt()
        return codes @ basis.T + noise * torch.randn(n, features, generator=generator)

    (train, val), test = draw(2 * rows).split(rows), draw(rows)
    return TensorDataModule((train,), (val,), (test,), batch_size=batch_size)


def fashion_mnist(data_dir: str | Path = "data", batch_size: int = 128, num_workers: int = 0) -> ImageDataModule:
    """Fashion-MNIST (Xiao et al. 2017): 60,000 and 10,000 grey images of clothes, 28x28, with a border of 2: 32x32.

    Args:
        data_dir: Holds torchvision's ``FashionMNIST/raw``, or the four IDX files themselves, as Debian's package
            ``dataset-fashion-mnist`` has them in /usr/share/datasets/fashion-mnist. Else they are downloaded to it.
        batch_size: Images a batch, on each device.
        num_workers: Processes that decode.
    """
    root = Path(data_dir)
    names = [Path(name) for name, _ in FashionMNIST.resources]
    given = [root / name if exists(root / name) else root / name.stem for name in names]
    transform = v2.Compose([v2.Pad(2), v2.PILToTensor()])

    def open_split(split: str, download: bool = False) -> Dataset:
        options = {"train": split != "test", "transform": transform}
        if not all(map(exists, given)):
            return _part(FashionMNIST(root, download=download, **options), split)
        with TemporaryDirectory() as directory:  # FashionMNIST reads unpacked files, from a place of its own, to memory
            raw = Path(directory) / "FashionMNIST" / "raw"
            raw.mkdir(parents=True)
            for path in given:
                if path.suffix == ".gz":
                    extract_archive(path, raw)
                else:
                    (raw / path.name).symlink_to(path.resolve())
            return _part(FashionMNIST(directory, **options), split)

    files = f"{', '.join(map(str, names))} from {FashionMNIST.mirrors[0]}"
    return _module(open_split, root, f"fetch {files} and put them into {root}", batch_size, num_workers)


def cifar10(data_dir: str | Path = "data", batch_size: int = 128, num_workers: int = 0) -> ImageDataModule:
    """CIFAR-10 (Krizhevsky 2009): 50,000 and 10,000 images of ten kinds of things, 32x32.

    Args:
        data_dir: Holds ``cifar-10-batches-py``, or it is downloaded to it.
        batch_size: Images a batch, on each device.
        num_workers: Processes that decode.
    """
    root = Path(data_dir)

    def open_split(split: str, download: bool = False) -> Dataset:
        return _part(CIFAR10(root, train=split != "test", transform=v2.PILToTensor(), download=download), split)

    return _module(open_split, root, f"fetch {CIFAR10.url} and unpack it in {root}", batch_size, num_workers)


def celeba(data_dir: str | Path = "data", batch_size: int = 128, num_workers: int = 0) -> ImageDataModule:
    """CelebA (Liu et al. 2015): 202,599 faces in their official partition, the middle 148x148 resized to 64x64.

    The label is whether the person smiles.

    Args:
        data_dir: Holds ``celeba``, or it is downloaded to it.
        batch_size: Images a batch, on each device.
        num_workers: Processes that decode.
    """
    root = Path(data_dir)
    transform = v2.Compose([v2.CenterCrop(148), v2.Resize(64, antialias=True), v2.PILToTensor()])

    def open_split(split: str, download: bool = False) -> Dataset:
        official = {"val": "valid"}.get(split, split)
        source = CelebA(root, split=official, download=download)
        source.target_transform = _Entry(source.attr_names.index(CELEBA_LABEL))
        return _NamesBadFiles(source, source.filename, transform)

    files = f"{', '.join(name for *_, name in CelebA.file_list)} from https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html"
    advice = f"fetch {files}, put them into {root / CelebA.base_folder} and unpack the zip file there"
    return _module(open_split, root, advice, batch_size, num_workers)


def folder(data_dir: str | Path, image_size: int = 32, batch_size: int = 128, num_workers: int = 0) -> ImageDataModule:
    """Images of one's own, in a folder a class: ``train/CLASS/*.jpg``, ``val/CLASS/*.jpg`` and ``test/CLASS/*.jpg``.

    Of ``val`` and ``test``, what is missing is a tenth of ``train``, held out; if there is no ``train``, each is a
    tenth of ``CLASS/*.jpg``. Hidden files and folders, whose names start with a dot, are left out.

    Args:
        data_dir: Holds the folders.
        image_size: Edge that images are resized and cropped to.
        batch_size: Images a batch, on each device.
        num_workers: Processes that decode.
    """
    root = Path(data_dir)
    transform = v2.Compose([v2.Resize(image_size, antialias=True), v2.CenterCrop(image_size), v2.PILToTensor()])

    def open_folder(path: Path) -> ImageFolder:
        try:
            return _VisibleImages(path, is_valid_file=_is_visible_image)
        except OSError as error:
            raise DataError(f"{path}: expected a folder of images for each class; {error}") from error

    def read(split: str) -> Dataset:
        given = [name for name in ("train", "val", "test") if isdir(root / name)]
        if given and "train" not in given:
            raise DataError(f"{root}: expected a folder 'train' beside {' and '.join(given)} (--data-dir)")
        train = open_folder(root / "train" if given else root)
        source = open_folder(root / split) if split in given else train
        if source.classes != train.classes:
            raise DataError(f"{root}: train has the classes {train.classes}, {split} has {source.classes}")
        missing = [name for name in ("val", "test") if name not in given]
        # Files are listed class by class; in a drawn order the first batches hold all classes.
        if split == "train" or split in missing:
            order = _indices(len(train), missing)[split]
        else:
            order = _indices(len(source), [])["train"]
        return Subset(_NamesBadFiles(source, [path for path, _ in source.samples], transform), order)

    return ImageDataModule(read, batch_size=batch_size, num_workers=num_workers)


class _VisibleImages(ImageFolder):
    """Without the hidden folders that notebooks and file browsers leave."""

    def find_classes(self, directory: str | Path) -> tuple[list[str], dict[str, int]]:
        classes = [name for name in super().find_classes(directory)[0] if not name.startswith(".")]
        if not classes:
            raise FileNotFoundError(f"Couldn't find any class folder in {directory}.")
        return classes, {name: k for k, name in enumerate(classes)}


def _is_visible_image(path: str) -> bool:
    return is_image_file(path) and not Path(path).name.startswith(".")


class _Entry:
    """Picks an entry of a target; a class, so that workers can be sent one."""

    def __init__(self, index: int) -> None:
        self.index = index

    def __call__(self, target: torch.Tensor) -> int:
        return int(target[self.index])


class _NamesBadFiles(Dataset):
    """Says which file it is that cannot be decoded; what goes wrong in the transform is another matter."""

    def __init__(self, source: Any, names: Sequence[str], transform: Callable[[Any], Tensor]) -> None:
        self.source = source
        self.names = names
        self.transform = transform

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Any:
        try:
            image, label = self.source[index]
            with image:
                image.load()  # CelebA only opens it
        except (OSError, SyntaxError) as error:  # Pillow has both
            if getattr(error, "filename", None) and Path(error.filename).name != Path(self.names[index]).name:
                raise  # it is about another file
            message = f"{self.names[index]}: this image cannot be decoded; replace it or delete it ({error})"
            raise DataError(message) from error
        return self.transform(image), label


def _module(
    open_split: Callable[..., Dataset], root: Path, advice: str, batch_size: int, num_workers: int
) -> ImageDataModule:
    """Of a data set that torchvision can download to ``root``; ``advice`` says how to do without."""

    def read(split: str, **options: bool) -> Dataset:
        try:
            return open_split(split, **options)
        except UNREADABLE as error:
            of_data = _is_of_torchvision(error) and not isinstance(error, NOT_OF_DATA)
            if not of_data or out_of_space(error) or _is_elsewhere(error, root):
                raise
            told = f"{root}: {in_words(error)}\nIf it cannot be downloaded here, {advice}, which is --data-dir."
            raise DataError(told) from error

    return ImageDataModule(read, lambda: read("train", download=True), batch_size, num_workers)


def _is_of_torchvision(error: BaseException) -> bool:
    """Whether torchvision was reading when it came up, whoever raised it."""
    frames = (frame for frame, _ in traceback.walk_tb(error.__traceback__))
    return any(frame.f_globals.get("__name__", "").partition(".")[0] == "torchvision" for frame in frames)


def _is_elsewhere(error: BaseException, root: Path) -> bool:
    """Whether it misses a file that is none of the data."""
    if not isinstance(error, FileNotFoundError):
        return False
    return error.filename is None or root.resolve() not in Path(error.filename).resolve().parents


def _part(source: Any, split: str) -> Dataset:
    """The test data as it is, or of the training data what is for training or for validation."""
    return source if split == "test" else Subset(source, _indices(len(source), ["val"])[split])


def _indices(n: int, held_out: Sequence[str]) -> dict[str, list[int]]:
    """Those of ``train`` and those of each part held out, a tenth, always the same."""
    order = torch.randperm(n, generator=torch.Generator().manual_seed(0)).tolist()
    size = n // 10
    if held_out and size == 0:
        raise DataError(f"expected 10 images or more, to hold out a tenth for {' and '.join(held_out)}, got {n}")
    parts = {name: order[k * size : (k + 1) * size] for k, name in enumerate(held_out)}
    return parts | {"train": order[len(held_out) * size :]}
