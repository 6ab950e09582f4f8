"""Images a second of the example trainer's loaders, beside those of its training step.

The images are made here, 32x32 JPEG files in folders. ``in memory`` is what the trainer does: each file decoded once.
``on disk`` is what it does where memory does not suffice: each file decoded for every batch.
"""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import study
import torch
from tables import Rows, markdown
from timing import interleave, ratio
from torch.nn.functional import interpolate
from torch.utils.data import DataLoader
from torchvision.transforms.v2.functional import to_pil_image

from lightning_rank import attach_linear_bottleneck
from rank_trainer import data
from rank_trainer.autoencoders import convolutional_autoencoder
from rank_trainer.data import modules

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def write_images(root: Path, n: int) -> None:
    """Smooth noise in ten folders."""
    noise = torch.rand(n, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    for k, image in enumerate(noise):
        path = root / str(k % 10) / f"{k}.jpg"
        path.parent.mkdir(exist_ok=True)
        to_pil_image(interpolate(image[None], size=(32, 32), mode="bilinear")[0]).save(path, quality=90)


def loader(root: Path, batch_size: int, num_workers: int, in_memory_bytes: int) -> DataLoader:
    """The training loader of a folder."""
    modules.IN_MEMORY_BYTES = in_memory_bytes
    module = data.folder(root, batch_size=batch_size, num_workers=num_workers)
    module.setup("fit")
    return module.train_dataloader()


def drain(batches: DataLoader) -> None:
    """A pass over the data, onto the device."""
    for images, _ in batches:
        images.to(DEVICE)


def training_step(batch_size: int) -> Callable[[], object]:
    """Forward, backward and update of one batch."""
    module = attach_linear_bottleneck(convolutional_autoencoder(), dim=128, depth=4).to(DEVICE)
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-3)
    images = torch.rand(batch_size, 3, 32, 32, device=DEVICE)

    def step() -> None:
        optimizer.zero_grad()
        (module(images) - images).square().flatten(1).sum(1).mean().backward()
        optimizer.step()

    return step


def measure(images: int = 20_000, batch_size: int = 128, num_workers: int = 0, rounds: int = 11) -> study.Tables:
    """Both loaders and the step, in turn."""
    with tempfile.TemporaryDirectory() as directory:
        write_images(Path(directory), images)
        start = time.perf_counter()
        in_memory = loader(Path(directory), batch_size, num_workers, modules.IN_MEMORY_BYTES)
        decoding = time.perf_counter() - start
        on_disk = loader(Path(directory), batch_size, num_workers, 0)
        ways = {
            "loader, in memory": lambda: drain(in_memory),
            "loader, on disk": lambda: drain(on_disk),
            "training step": training_step(batch_size),
        }
        per_pass = len(in_memory) * batch_size
        times = interleave(ways, rounds=rounds, budget=600)
    seconds = {way: times[way] / (batch_size if way == "training step" else per_pass) for way in ways}
    speeds = [
        {"": way, "images a second": f"{1 / seconds[way].median().item():,.0f}"}
        | {"images a second / training step's": ratio(seconds, "training step", way)}
        for way in ways
    ]
    return {"speeds": speeds, "decoding": [{"images": images, "seconds": decoding}]}


def text(speeds: Rows, decoding: Rows, images: int, batch_size: int, num_workers: int, rounds: int) -> str:
    """The report."""
    return f"""{images:,} JPEG files of 32x32, batches of {batch_size}, {num_workers} decoding processes beside the
main one; the step is forward, backward and Adam of IRMAE's network for 32x32 with 4 linear layers, on {DEVICE.type}.
Decoding all files into memory took {decoding[0]["seconds"]:.1f} s, once. Medians of {rounds} interleaved rounds, ratios
with the middle 80 % of them; below 1 a loader would hold training up. The step is that of this device: a GPU takes more
images a second.

{markdown(speeds)}"""


STUDY = study.Study(
    name="loader",
    title="Loaders and the training step",
    measure=measure,
    text=text,
    quick={"images": 1_000, "rounds": 3},
    flags={
        "images": "that are made",
        "batch_size": "images a batch",
        "num_workers": "processes that decode",
        "rounds": "of each way",
    },
)
if __name__ == "__main__":
    STUDY.main()
