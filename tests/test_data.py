"""The data modules of the example trainer, on small data sets in the formats of the real ones."""

import errno
import gzip
import hashlib
import itertools
import pickle
import re
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import random_split
from torchvision.datasets import CIFAR10, CelebA, FashionMNIST, ImageFolder
from torchvision.transforms import v2

from rank_trainer import data
from rank_trainer.data import DataError, modules

SPLITS = ("train", "val", "test")


def whole(module, split):
    """All images and labels of a split, in order."""
    module.setup("test" if split == "test" else "fit")
    dataset = getattr(module, split)
    return tuple(torch.stack(column) for column in zip(*(dataset[i] for i in range(len(dataset))), strict=True))


def marks(module, split):
    """The number that each image carries in its first pixel: which image it is."""
    images = whole(module, split)[0]
    return [round(255 * pixel) for pixel in images[:, 0].flatten(1).amax(1).tolist()]


def write_cifar10(root: Path, monkeypatch, per_batch: int = 10) -> np.ndarray:
    """CIFAR-10's python version: pickled rows of 3,072 bytes, red first; image k of all holds k throughout."""
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    written, number = {}, 0
    for name, _ in CIFAR10.train_list + CIFAR10.test_list:
        rows = np.repeat(np.arange(number, number + per_batch, dtype=np.uint8)[:, None], 3072, axis=1)
        entry = {"data": rows, "labels": [k % 10 for k in range(per_batch)]}
        (folder / name).write_bytes(pickle.dumps(entry))
        written[name] = hashlib.md5((folder / name).read_bytes()).hexdigest()
        number += per_batch
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": [f"kind {k}" for k in range(10)]}))
    meta = hashlib.md5((folder / "batches.meta").read_bytes()).hexdigest()
    for attribute in ("train_list", "test_list"):
        monkeypatch.setattr(CIFAR10, attribute, [[name, written[name]] for name, _ in getattr(CIFAR10, attribute)])
    monkeypatch.setattr(CIFAR10, "meta", CIFAR10.meta | {"md5": meta})


def write_idx(path: Path, array: np.ndarray) -> None:
    """An IDX file: 0, 0, unsigned bytes, number of axes, sizes, values; packed if so named."""
    content = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.astype(np.uint8).tobytes()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def write_fashion_mnist(root: Path, suffix: str) -> None:
    root.mkdir(parents=True)
    for part, n, first in (("train", 50, 0), ("t10k", 10, 50)):
        images = np.zeros((n, 28, 28))
        images[:, 0, 0] = np.arange(first, first + n)
        write_idx(root / f"{part}-images-idx3-ubyte{suffix}", images)
        write_idx(root / f"{part}-labels-idx1-ubyte{suffix}", np.arange(n) % 10)


def write_celeba(root: Path, monkeypatch) -> None:
    """CelebA's text files and JPEGs of 178x218: a white square in the middle, whose border would tell a wrong crop."""
    folder = root / "celeba"
    (folder / "img_align_celeba").mkdir(parents=True)
    names = [f"{k:06d}.jpg" for k in range(1, 8)]
    for name in names:
        picture = np.zeros((218, 178, 3), np.uint8)
        picture[35:183, 15:163] = 255
        Image.fromarray(picture).save(folder / "img_align_celeba" / name, quality=95)
    partition = dict(zip(names, (0, 0, 0, 1, 1, 2, 2), strict=True))
    smiles = dict(zip(names, (1, -1, 1, -1, 1, -1, 1), strict=True))
    lines = {
        "list_eval_partition.txt": [f"{name} {partition[name]}" for name in names],
        "identity_CelebA.txt": [f"{name} 7" for name in names],
        "list_bbox_celeba.txt": ["7", "image_id x_1 y_1 width height", *(f"{name} 1 2 3 4" for name in names)],
        "list_landmarks_align_celeba.txt": ["7", "x y", *(f"{name} 1 2" for name in names)],
        "list_attr_celeba.txt": ["7", "Bald Smiling Young", *(f"{name} -1 {smiles[name]:2d} 1" for name in names)],
    }
    md5 = {}
    for name, content in lines.items():
        (folder / name).write_text("\n".join(content) + "\n")
        md5[name] = hashlib.md5((folder / name).read_bytes()).hexdigest()
    listed = [(file_id, md5.get(name, old), name) for file_id, old, name in CelebA.file_list]
    monkeypatch.setattr(CelebA, "file_list", listed)


def write_folder(root: Path, kinds=("cat", "dog"), n: int = 10, first: int = 0, size=(32, 32)) -> int:
    for kind in kinds:
        (root / kind).mkdir(parents=True)
        for _ in range(n):
            Image.new("RGB", size, (first, 0, 0)).save(root / kind / f"{first:03d}.png")
            first += 1
    return first


def test_cifar10_in_its_own_format(tmp_path, monkeypatch):
    write_cifar10(tmp_path, monkeypatch)
    module = data.cifar10(tmp_path)
    module.prepare_data()
    images, labels = whole(module, "test")
    assert images.shape == (10, 3, 32, 32)
    assert images.dtype == torch.float32
    assert torch.equal(images[3], torch.full((3, 32, 32), 53 / 255))
    assert labels.tolist() == list(range(10))
    train, val = marks(module, "train"), marks(module, "val")
    assert len(val) == 5
    assert sorted(train + val) == list(range(50)), "what is held out is not trained on, and nothing is lost"
    assert marks(data.cifar10(tmp_path), "val") == val, "the same images are held out every time"


@pytest.mark.parametrize("where", ["torchvision's folder", "Debian's folder", "unpacked files"])
def test_fashion_mnist_in_its_own_format(tmp_path, where):
    root = tmp_path / "FashionMNIST" / "raw" if where == "torchvision's folder" else tmp_path / "files"
    write_fashion_mnist(root, ".gz" if where == "Debian's folder" else "")
    module = data.fashion_mnist(tmp_path if where == "torchvision's folder" else root)
    before = sorted(tmp_path.rglob("*"))
    module.prepare_data()
    images, labels = whole(module, "test")
    assert images.shape == (10, 1, 32, 32)
    assert [round(255 * value) for value in images[:, 0, 2, 2].tolist()] == list(range(50, 60)), "a border of 2"
    assert labels.tolist() == list(range(10))
    assert sorted(marks(module, "train") + marks(module, "val")) == list(range(50))
    assert sorted(tmp_path.rglob("*")) == before, "a folder that was given is only read"


def test_celeba_in_its_own_format(tmp_path, monkeypatch):
    write_celeba(tmp_path, monkeypatch)
    module = data.celeba(tmp_path)
    module.prepare_data()
    images, labels = whole(module, "train")
    assert images.shape == (3, 3, 64, 64)
    assert images.min() > 0.97, "the middle 148x148 and nothing else"
    assert labels.tolist() == [1, 0, 1], "whether they smile"
    assert whole(module, "val")[1].tolist() == [0, 1]
    assert whole(module, "test")[1].tolist() == [0, 1]


@pytest.mark.parametrize(
    ("given", "sizes"),
    [
        (("train", "val", "test"), (20, 20, 20)),
        (("train", "test"), (18, 2, 20)),
        (("train", "val"), (18, 20, 2)),
        ((), (16, 2, 2)),
    ],
)
def test_folders_are_split_as_they_are_or_a_tenth_is_held_out(tmp_path, given, sizes):
    first = 0
    for name in given or ("",):
        first = write_folder(tmp_path / name, first=first)
    module = data.folder(tmp_path)
    found = [marks(module, split) for split in SPLITS]
    assert tuple(map(len, found)) == sizes
    assert sorted(itertools.chain(*found)) == list(range(first)), "no image is in two splits, none is lost"
    assert [marks(data.folder(tmp_path), split) for split in SPLITS] == found
    for split, marked in zip(SPLITS, found, strict=True):
        assert whole(module, split)[1].tolist() == [(mark // 10) % 2 for mark in marked]


def test_what_is_hidden_in_a_folder_is_left_out(tmp_path):
    """What notebooks and file browsers leave, beside the classes and in them."""
    write_folder(tmp_path)
    for hidden in (".ipynb_checkpoints", ".thumbnails"):
        (tmp_path / hidden).mkdir()
        (tmp_path / "cat" / hidden).mkdir()
    Image.new("RGB", (32, 32)).save(tmp_path / ".thumbnails" / "cat.png")
    (tmp_path / "cat" / "._000.png").write_bytes(b"no image")
    module = data.folder(tmp_path)
    assert sorted(itertools.chain(*(marks(module, split) for split in SPLITS))) == list(range(20))
    only_hidden = tmp_path / "empty" / ".git"
    only_hidden.mkdir(parents=True)
    with pytest.raises(DataError, match="expected a folder of images for each class"):
        data.folder(tmp_path / "empty").setup("fit")


def test_the_first_batches_of_a_folder_hold_all_classes(tmp_path):
    for name in SPLITS:
        write_folder(tmp_path / name, n=40)
    module = data.folder(tmp_path)
    for split in SPLITS:
        share = whole(module, split)[1][:20].double().mean().item()
        assert 0.2 < share < 0.8, split


def test_images_of_a_folder_are_resized_and_cropped(tmp_path):
    write_folder(tmp_path, n=10, size=(100, 70))
    assert whole(data.folder(tmp_path, image_size=64), "train")[0].shape == (16, 3, 64, 64)


def test_the_test_split_is_not_read_before_the_end(tmp_path):
    write_folder(tmp_path / "train")
    write_folder(tmp_path / "test")
    (tmp_path / "test" / "cat" / "000.png").write_bytes(b"no image")
    module = data.folder(tmp_path)
    module.setup("fit")
    assert not hasattr(module, "test")
    with pytest.raises(DataError, match=r"000\.png: this image cannot be decoded"):
        module.setup("test")


@pytest.mark.parametrize("where", ["in memory", "on disk"])
def test_batches_are_images_in_the_unit_interval_and_labels(tmp_path, monkeypatch, where):
    if where == "on disk":
        monkeypatch.setattr(modules, "IN_MEMORY_BYTES", 0)
    write_folder(tmp_path, n=30)
    module = data.folder(tmp_path, batch_size=16)
    module.setup("fit")
    assert isinstance(module.train, modules.DecodedImages) == (where == "in memory")
    batches = list(module.train_dataloader())
    assert [list(map(len, batch)) for batch in batches] == [[16, 16]] * 3
    images, labels = batches[0]
    assert (images.dtype, labels.dtype) == (torch.float32, torch.int64)
    ((val_images, val_labels),) = module.val_dataloader()
    kinds = (val_images[:, 0, 0, 0] * 255).round().long() // 30
    assert torch.equal(kinds, val_labels)
    assert val_images[:, 1:].eq(0).all()


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("content", [b"no image", "half of one"])
def test_an_image_that_cannot_be_decoded_is_named(tmp_path, content, workers):
    write_folder(tmp_path, n=10, size=(200, 200))
    bad = tmp_path / "dog" / "012.png"  # not the first of its split, which no worker decodes
    bad.write_bytes(bad.read_bytes()[:-200] if content == "half of one" else content)
    module = data.folder(tmp_path, num_workers=workers)
    with pytest.raises(DataError) as caught:
        [module.setup(stage) for stage in ("fit", "test")]
    told = r"this image cannot be decoded; replace it or delete it \([^()\n]+\)"
    assert re.fullmatch(rf"{re.escape(str(bad))}: {told}", str(caught.value)), "in one line, whoever decoded it"


def test_an_image_of_celeba_that_cannot_be_decoded_is_named(tmp_path, monkeypatch):
    write_celeba(tmp_path, monkeypatch)
    bad = tmp_path / "celeba" / "img_align_celeba" / "000002.jpg"
    bad.write_bytes(bad.read_bytes()[:-1000])
    with pytest.raises(DataError, match=r"^000002\.jpg: this image cannot be decoded; .*truncated"):
        data.celeba(tmp_path).setup("fit")


@pytest.mark.parametrize("bug", [OSError("no such font"), SyntaxError("no such word")], ids=["OSError", "SyntaxError"])
def test_a_bug_in_a_transform_is_not_called_a_bad_image(tmp_path, monkeypatch, bug):
    def broken(*args, **kwargs):
        raise bug

    write_folder(tmp_path / "images")
    write_celeba(tmp_path, monkeypatch)
    monkeypatch.setattr(v2.PILToTensor, "forward", broken)
    for module in (data.folder(tmp_path / "images"), data.celeba(tmp_path)):
        with pytest.raises(type(bug)) as caught:
            module.setup("fit")
        assert caught.value is bug


def test_a_failed_download_says_what_to_fetch_and_where_to_put_it(tmp_path, monkeypatch):
    def no_network(*args, **kwargs):
        raise OSError("Name or service not known")

    monkeypatch.setattr("torchvision.datasets.utils._urlretrieve", no_network)
    monkeypatch.setattr("torchvision.datasets.utils._get_redirect_url", lambda url, **_: url)
    monkeypatch.setattr("torchvision.datasets.celeba.download_file_from_google_drive", no_network)
    for make, told in (
        (data.cifar10, rf"fetch https://.*/cifar-10-python\.tar\.gz and unpack it in {tmp_path}, which is --data-dir"),
        (
            data.fashion_mnist,
            rf"fetch train-images-idx3-ubyte\.gz, .* and put them into {tmp_path}, which is --data-dir",
        ),
        (data.celeba, rf"fetch img_align_celeba\.zip, .*, put them into {tmp_path}/celeba and unpack"),
    ):
        with pytest.raises(DataError, match=told):
            make(tmp_path).prepare_data()


@pytest.mark.parametrize(
    "bug",
    [
        ModuleNotFoundError("No module named 'gone'"),
        AttributeError("no such attribute"),
        NotImplementedError("not yet"),
        FileNotFoundError(errno.ENOENT, "No such file or directory", "/etc/none.cfg"),
        OSError(errno.ENOSPC, "No space left on device"),
    ],
    ids=lambda bug: type(bug).__name__,
)
def test_a_bug_is_not_called_missing_data(tmp_path, monkeypatch, bug):
    def broken(*args, **kwargs):
        raise bug

    monkeypatch.setattr(CIFAR10, "download", broken)
    monkeypatch.setattr(ImageFolder, "__getitem__", broken)
    with pytest.raises(type(bug)) as caught:
        data.cifar10(tmp_path).prepare_data()
    assert caught.value is bug
    assert caught.traceback[-1].name == "broken", "its own traceback"
    if isinstance(bug, OSError) and bug.filename is None:
        return  # which image it was is worth saying
    write_folder(tmp_path)
    with pytest.raises(type(bug)) as caught:
        data.folder(tmp_path).setup("fit")
    assert caught.value is bug


@pytest.mark.parametrize(
    "bug",
    [
        lambda source: data.sets._Entry(0)(["no number"]),
        lambda source: random_split(source, [1, 2]),
        lambda source: torch.tensor(0.5).reshape(3),
    ],
    ids=["of this package", "of torch", "of torch's C++"],
)
def test_a_bug_of_our_own_is_not_called_missing_data(tmp_path, monkeypatch, bug):
    """Its kind is one that torchvision raises over files; what tells them apart is who was at it."""
    write_cifar10(tmp_path, monkeypatch)
    monkeypatch.setattr(data.sets, "_part", lambda source, split: bug(source))
    with pytest.raises((ValueError, RuntimeError)) as caught:
        data.cifar10(tmp_path).setup("fit")
    assert not isinstance(caught.value, DataError)
    monkeypatch.setattr(CIFAR10, "_load_meta", bug)  # the same, when torchvision reads
    with pytest.raises(DataError, match=re.escape(f"{tmp_path}: {type(caught.value).__name__}: {caught.value}\nIf it")):
        data.cifar10(tmp_path).setup("fit")


def test_a_file_of_the_data_that_is_missing_is_missing_data(tmp_path, monkeypatch):
    def lacks(self):
        (self.root / "cifar-10-batches-py" / "data_batch_1").open()

    monkeypatch.setattr(CIFAR10, "download", lacks)
    with pytest.raises(DataError, match="data_batch_1'\nIf it cannot be downloaded here"):
        data.cifar10(tmp_path).prepare_data()


@pytest.mark.parametrize("place", ["a file", "no" * 200])
def test_what_is_no_folder_or_cannot_be_looked_at_is_missing_data(tmp_path, place):
    """A name that is too long stands for all that the system does not let one look at."""
    (tmp_path / "a file").touch()
    given = tmp_path / place
    with pytest.raises(DataError, match=re.escape(f"{given}: expected a folder of images for each class; [Errno")):
        data.folder(given).setup("fit")
    for make in (data.cifar10, data.fashion_mnist):
        with pytest.raises(DataError, match=re.escape(f"{given}: ") + r"\w+: \[Errno .*\nIf it cannot"):
            make(given).prepare_data()


def test_folders_that_are_no_data_set_are_refused(tmp_path):
    with pytest.raises(DataError, match="expected a folder of images for each class"):
        data.folder(tmp_path).setup("fit")
    write_folder(tmp_path / "val")
    with pytest.raises(DataError, match="expected a folder 'train' beside val"):
        data.folder(tmp_path).setup("fit")
    write_folder(tmp_path / "train", kinds=("cat", "cow"))
    with pytest.raises(DataError, match=r"train has the classes \['cat', 'cow'\], val has \['cat', 'dog'\]"):
        data.folder(tmp_path).setup("fit")
    write_folder(tmp_path / "few", n=2)
    with pytest.raises(DataError, match="expected 10 images or more, to hold out a tenth for val and test, got 4"):
        data.folder(tmp_path / "few").setup("fit")


def test_damaged_files_are_not_passed_over(tmp_path):
    write_fashion_mnist(tmp_path / "files", ".gz")
    damaged = tmp_path / "files" / "train-images-idx3-ubyte.gz"
    damaged.write_bytes(damaged.read_bytes()[:50])
    with pytest.raises(DataError, match="end-of-stream"):
        data.fashion_mnist(tmp_path / "files").prepare_data()


@pytest.mark.parametrize(
    ("labels", "told"),
    [
        (b"no labels", "AssertionError"),
        (b"", "ValueError: invalid literal for int() with base 16: b''"),
        (struct.pack(">HBBII", 0, 10, 1, 1, 7), "KeyError: 10"),
        (struct.pack(">HBBII", 0, 12, 1, 1, 7), "TypeError: x should be of dtype torch.uint8 instead of torch.int32"),
    ],
)
def test_labels_that_are_none_are_told_by_kind_and_folder(tmp_path, labels, told):
    write_fashion_mnist(tmp_path / "files", ".gz")
    (tmp_path / "files" / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(labels))
    files = ", ".join(name for name, _ in FashionMNIST.resources)
    advice = f"fetch {files} from {FashionMNIST.mirrors[0]} and put them into {tmp_path}/files, which is --data-dir"
    with pytest.raises(DataError) as caught:
        data.fashion_mnist(tmp_path / "files").prepare_data()
    assert str(caught.value) == f"{tmp_path}/files: {told}\nIf it cannot be downloaded here, {advice}."


def test_digits_are_split_without_overlap():
    module = data.digits()
    rows = [tuple(row) for split in SPLITS for row in getattr(module, split).tensors[0].tolist()]
    assert [len(getattr(module, split)) for split in SPLITS] == [1348, 224, 225]
    assert len(rows) == 1797
