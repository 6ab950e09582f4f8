"""What a whole training costs with the bottleneck and both callbacks, over the same training without.

``--quick`` trains on fewer images and writes nothing.
"""

import argparse
import logging
import sys
import warnings
from pathlib import Path

import report
import torch
from lightning.pytorch import Trainer
from timing import interleave, milliseconds, ratio
from torch.utils.data import DataLoader, TensorDataset

from lightning_rank import DepthScaledLR, EffectiveRankMonitor, attach_linear_bottleneck

sys.path.append(str(Path(__file__).parents[1] / "examples"))
from rank_trainer.autoencoders import convolutional_autoencoder

ALL = "bottleneck, DepthScaledLR, EffectiveRankMonitor"
PARTS = {
    "without": (False, False, False),
    "bottleneck": (True, False, False),
    "bottleneck, DepthScaledLR": (True, True, False),
    ALL: (True, True, True),
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
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    if args.quick:
        args.images, args.epochs, args.rounds = 100, 1, 3
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    sections, record = [], []
    for threads in (1,) if args.quick else (1, 2):
        torch.set_num_threads(threads)
        times = interleave(
            {name: lambda on=on: fit(on, args.images, args.epochs, args.depth) for name, on in PARTS.items()},
            rounds=args.rounds,
            budget=3600,
        )
        ratios = {name: ratio(times, name, "without") for name in PARTS}
        table = [[name, milliseconds(times, name) / 1000, ratios[name]] for name in PARTS]
        sections += [f"## {threads} thread(s)", report.markdown(["parts", "seconds", "time / without"], table)]
        sections += [f"All parts together cost {100 * (ratios[ALL].median - 1):.1f} %; required: at most 3 %."]
        record += [
            {"threads": threads, "round": turn} | {name: seconds[turn].item() for name, seconds in times.items()}
            for turn in range(len(times[ALL]))
        ]
    torch.set_num_threads(1)
    head = (
        f"A whole `Trainer.fit`: IRMAE's network for MNIST (32x32, 128 latents), batch 256, {args.images} images an "
        f"epoch and {args.images // 5} to validate on, {args.epochs} epoch(s), {args.depth} linear layers; the median "
        f"of {args.rounds} interleaved rounds, with the middle 80 % of them."
    )
    body = "\n\n".join([head, *sections])
    print(body)
    if not args.quick:
        report.write_csv("training_overhead", "rounds.csv", record)
        print(report.write("training_overhead", "Cost of a whole training", body))


if __name__ == "__main__":
    main()
