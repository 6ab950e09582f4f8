"""What a whole training costs with the bottleneck and both callbacks, over the same training without."""

import logging
import warnings
from collections.abc import Sequence

import study
import torch
from lightning.pytorch import Trainer
from tables import Row, Rows, markdown, where
from timing import interleave, milliseconds, ratio
from torch.utils.data import DataLoader, TensorDataset

from lightning_rank import DepthScaledLR, EffectiveRankMonitor, attach_linear_bottleneck
from rank_trainer.autoencoders import convolutional_autoencoder

ALL = "bottleneck, DepthScaledLR, EffectiveRankMonitor"
PARTS = {
    "without": (False, False, False),
    "bottleneck": (True, False, False),
    "bottleneck, DepthScaledLR": (True, True, False),
    ALL: (True, True, True),
}
#: Part of the time of a training that all parts together may cost.
REQUIRED = 0.03


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


def measure(
    images: int = 5000, epochs: int = 2, depth: int = 4, rounds: int = 5, threads: Sequence[int] = (1, 2)
) -> study.Tables:
    """Whole trainings with ever more parts, in turn."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    costs: list[Row] = []
    record: list[Row] = []
    for number in threads:
        torch.set_num_threads(number)
        ways = {name: lambda on=on: fit(on, images, epochs, depth) for name, on in PARTS.items()}
        times = interleave(ways, rounds=rounds, budget=3600)
        costs += [
            {"threads": number, "parts": name, "seconds": milliseconds(times, name) / 1000}
            | {"time / without": ratio(times, name, "without")}
            for name in PARTS
        ]
        record += [
            {"threads": number, "round": turn} | {name: seconds[turn].item() for name, seconds in times.items()}
            for turn in range(len(times[ALL]))
        ]
    torch.set_num_threads(1)
    return {"costs": costs, "rounds": record}


def verdict(costs: Rows) -> str:
    """What all parts cost together."""
    found = {row["threads"]: row["time / without"].median - 1 for row in where(costs, parts=ALL)}
    told = ", ".join(f"{100 * cost:.1f} % with {number} thread(s)" for number, cost in found.items())
    return f"All parts together cost {told}; required: at most {100 * REQUIRED:g} %."


def text(costs: Rows, verdict: str, images: int, epochs: int, depth: int, rounds: int) -> str:
    """The report."""
    return f"""A whole `Trainer.fit`: IRMAE's network for MNIST (32x32, 128 latents), batch 256, {images} images an
epoch and {images // 5} to validate on, {epochs} epoch(s), {depth} linear layers; the median of {rounds} interleaved
rounds, with the middle 80 % of them.

{markdown(costs)}

{verdict}"""


STUDY = study.Study(
    name="training_overhead",
    title="Cost of a whole training",
    measure=measure,
    text=text,
    verdict=verdict,
    quick={"images": 100, "epochs": 1, "rounds": 3, "threads": (1,)},
    flags={
        "images": "training images an epoch",
        "epochs": "of a training",
        "depth": "of the bottleneck",
        "rounds": "of each way",
    },
)
if __name__ == "__main__":
    STUDY.main()
