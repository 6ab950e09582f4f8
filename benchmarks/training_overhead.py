"""What a whole training costs with the bottleneck and both callbacks, over the same training without.

``--quick`` trains on fewer images and writes nothing.
"""

import argparse
import logging
import sys
import time
import warnings
from pathlib import Path

import report
import torch
from lightning.pytorch import Trainer
from timing import Ratio, interleave, milliseconds, ratio
from torch.utils.data import DataLoader, TensorDataset

from lightning_rank import DepthScaledLR, EffectiveRankMonitor, attach_linear_bottleneck

sys.path.append(str(Path(__file__).parents[1] / "examples"))
from autoencoders import convolutional_autoencoder

PARTS = {
    "without": (False, False, False),
    "bottleneck": (True, False, False),
    "bottleneck, DepthScaledLR": (True, True, False),
    "bottleneck, DepthScaledLR, EffectiveRankMonitor": (True, True, True),
}


def fit(parts: tuple[bool, bool, bool], images: int, epochs: int, depth: int) -> None:
    """Train IRMAE's network for MNIST, batch 256; a fifth as many images again to validate on."""
    bottleneck, scaled, monitored = parts
    torch.manual_seed(0)
    train, val = (DataLoader(TensorDataset(torch.rand(n, 1, 32, 32)), 256) for n in (images, images // 5))
    model = convolutional_autoencoder(channels=1)
    if bottleneck:
        attach_linear_bottleneck(model, dim=128, depth=depth)
    Trainer(
        accelerator="cuda" if torch.cuda.is_available() else "cpu",
        max_epochs=epochs,
        callbacks=[DepthScaledLR()] * scaled + [EffectiveRankMonitor()] * monitored,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    ).fit(model, train, val)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer images, and nothing is written")
    parser.add_argument("--images", type=int, default=5000, help="training images an epoch")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--depth", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=11)
    args = parser.parse_args()
    if args.quick:
        args.images, args.epochs, args.rounds = 512, 1, 3
    torch.set_num_threads(1)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    start = time.perf_counter()
    times = interleave(
        {name: lambda parts=parts: fit(parts, args.images, args.epochs, args.depth) for name, parts in PARTS.items()},
        rounds=args.rounds,
        budget=3600,
    )
    ratios: dict[str, Ratio] = {name: ratio(times, name, "without") for name in PARTS}
    table = [[name, milliseconds(times, name) / 1000, ratios[name]] for name in PARTS]
    whole = ratios[list(PARTS)[-1]].median
    body = "\n\n".join(
        [
            f"A whole `Trainer.fit`: IRMAE's network for MNIST (32x32, 128 latents), batch 256, {args.images} images "
            f"an epoch and {args.images // 5} to validate on, {args.epochs} epochs, {args.depth} linear layers, one "
            f"thread; the median of {args.rounds} interleaved rounds, with the middle 80 % of them.",
            report.markdown(["parts", "seconds", "time / without"], table),
            f"All parts together cost {100 * (whole - 1):.1f} %; required: at most 3 %. "
            f"Measuring took {time.perf_counter() - start:.0f} s.",
        ]
    )
    print(body)
    if not args.quick:
        print(report.write("training_overhead", "Cost of a whole training", body))


if __name__ == "__main__":
    main()
