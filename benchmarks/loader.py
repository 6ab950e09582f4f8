"""Images a second of the example trainer's loaders, beside those of its training step.

The images are made here, 32x32 JPEG files in folders. ``in memory`` is what the trainer does: each file decoded once.
``on disk`` is what it does where memory does not suffice: each file decoded for every batch. ``--quick`` takes fewer
images and writes nothing.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import report
import torch
from timing import interleave, ratio
from torch.nn.functional import interpolate
from torch.utils.data import DataLoader
from torchvision.transforms.v2.functional import to_pil_image

from lightning_rank import attach_linear_bottleneck

sys.path.append(str(Path(__file__).parents[1] / "examples"))
from rank_trainer import data
from rank_trainer.autoencoders import convolutional_autoencoder
from rank_trainer.data import modules


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer images, and nothing is written")
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--num-workers", type=int, default=0, help="processes that decode")
    parser.add_argument("--rounds", type=int, default=11)
    args = parser.parse_args()
    if args.quick:
        args.images, args.rounds = 1_000, 3
    torch.set_num_threads(1)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with tempfile.TemporaryDirectory() as directory:
        write_images(Path(directory), args.images)
        start = time.perf_counter()
        in_memory = loader(Path(directory), args, modules.IN_MEMORY_BYTES)
        decoding = time.perf_counter() - start
        on_disk = loader(Path(directory), args, 0)
        ways = {
            "loader, in memory": lambda: drain(in_memory, device),
            "loader, on disk": lambda: drain(on_disk, device),
            "training step": training_step(args.batch_size, device),
        }
        images = {"training step": args.batch_size}
        per_pass = len(in_memory) * args.batch_size
        times = interleave(ways, rounds=args.rounds, budget=600)
    seconds = {way: times[way] / images.get(way, per_pass) for way in ways}
    rows = [[way, f"{1 / seconds[way].median().item():,.0f}", ratio(seconds, "training step", way)] for way in ways]
    body = "\n\n".join(
        [
            f"{args.images:,} JPEG files of 32x32, batches of {args.batch_size}, {args.num_workers} decoding processes "
            f"beside the main one; the step is forward, backward and Adam of IRMAE's network for 32x32 with 4 linear "
            f"layers, on {device.type}. Decoding all files into memory took {decoding:.1f} s, once. Medians of "
            f"{args.rounds} interleaved rounds, ratios with the middle 80 % of them; below 1 a loader would "
            "hold training up. The step is that of this device: a GPU takes more images a second.",
            report.markdown(["", "images a second", "images a second / training step's"], rows),
        ]
    )
    print(body)
    if not args.quick:
        print(report.write("loader", "Loaders and the training step", body))


def write_images(root: Path, n: int) -> None:
    """Smooth noise in ten folders."""
    noise = torch.rand(n, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    for k, image in enumerate(noise):
        path = root / str(k % 10) / f"{k}.jpg"
        path.parent.mkdir(exist_ok=True)
        to_pil_image(interpolate(image[None], size=(32, 32), mode="bilinear")[0]).save(path, quality=90)


def loader(root: Path, args: argparse.Namespace, in_memory_bytes: int) -> DataLoader:
    """The training loader of a folder."""
    modules.IN_MEMORY_BYTES = in_memory_bytes
    module = data.folder(root, batch_size=args.batch_size, num_workers=args.num_workers)
    module.setup("fit")
    return module.train_dataloader()


def drain(batches: DataLoader, device: torch.device) -> None:
    """A pass over the data, onto the device."""
    for images, _ in batches:
        images.to(device)


def training_step(batch_size: int, device: torch.device) -> Callable[[], object]:
    """Forward, backward and update of one batch."""
    module = attach_linear_bottleneck(convolutional_autoencoder(), dim=128, depth=4).to(device)
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-3)
    images = torch.rand(batch_size, 3, 32, 32, device=device)

    def step() -> None:
        optimizer.zero_grad()
        (module(images) - images).square().flatten(1).sum(1).mean().backward()
        optimizer.step()

    return step


if __name__ == "__main__":
    main()
