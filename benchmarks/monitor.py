"""What the rank of a whole split costs, beside other ways to get it, and what each way can tell.

``--quick`` takes fewer rows and writes nothing.
"""

import argparse
import csv
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import report
import torch
from monitor_accuracy import BATCH, WAYS, errors, resolved
from threadpoolctl import threadpool_limits
from timing import interleave, milliseconds, ratio
from torch import Tensor

from lightning_rank.metrics import LatentSpectrum

sys.path.append(str(Path(__file__).parents[1] / "examples"))
from autoencoders import convolutional_autoencoder

IMAGES = 256
SIZES = ((100_000, 128), (100_000, 64), (50_000, 256), (20_000, 512))


def float64_matmul(rows: Tensor) -> Callable[[], Tensor]:
    """One matrix product in float64 of all rows with themselves: what the second moment costs at least."""
    wide = rows.double()
    return lambda: wide.T @ wide


def costs(n: int, dim: int) -> tuple[list[str], dict[str, Tensor]]:
    """Time of an epoch, each way, on float32 latents that come in batches."""
    rows = torch.randn(n, dim, generator=torch.Generator().manual_seed(0))
    calls: dict[str, Callable[[], object]] = {name: lambda way=way: way(rows) for name, way in WAYS.items()}
    calls["one float64 matmul"] = float64_matmul(rows)
    return list(calls), interleave(calls, rounds=9, budget=90)


def accuracy_of_ways(n: int) -> dict[str, list[float]]:
    """What each way resolves, and the error of its effective rank, without and with an offset of the mean."""
    near, far = resolved(n, 0.0), resolved(n, 100.0)
    (_, error), (_, error_far) = errors(n, "1 to 1e-7 in 64 steps"), errors(n, "the same, offset 100")
    return {way: [near[way], far[way], error[way], error_far[way]] for way in WAYS}


def table_of_ways(times: dict[str, Tensor], n: int, dim: int, accuracy: dict[str, list[float]]) -> str:
    """Time, memory, and what can be told apart, a row each way."""
    memory = {
        "LatentSpectrum": _peak_bytes(n, dim),
        "all rows, svdvals float32": 4 * n * dim,
        "all rows, np.cov and SVD": 4 * n * dim,
        "sums, float64": 8 * dim * (dim + 1),
        "sums, float32": 4 * dim * (dim + 1),
        "queue of 2048, not centred": 4 * 2048 * dim,
    }
    table = [
        [
            way,
            ratio(times, way, "all rows, svdvals float32"),
            ratio(times, way, "one float64 matmul"),
            memory[way] / 2**20,
            *accuracy[way],
        ]
        for way in WAYS
    ]
    header = ["way", "time / (all rows, svdvals)", "time / one float64 matmul", "latents or sums kept, MiB"]
    header += ["resolves", "resolves, offset 100", "error of effective rank", "the same, offset 100"]
    return report.markdown(header, table)


def update_cost(threads: int, rounds: int) -> list[Any]:
    """Taking in a batch over the forward pass of IRMAE's encoder for MNIST that made it."""
    torch.set_num_threads(threads)
    encoder = convolutional_autoencoder(channels=1).encoder.eval()
    metric = LatentSpectrum(128)
    images = torch.rand(IMAGES, 1, 32, 32)
    with torch.no_grad():
        latents = encoder(images)

        def four_updates() -> None:
            for _ in range(4):  # the fourth fills the buffer
                metric.update(latents)

        def four_forwards() -> None:
            for _ in range(4):
                encoder(images)

        times = interleave({"update": four_updates, "forward": four_forwards}, rounds=rounds, budget=60)
    torch.set_num_threads(1)
    found = ratio(times, "update", "forward")
    return [threads, milliseconds(times, "update") / 4, milliseconds(times, "forward") / 4, found, found.median <= 0.01]


def exchanged_bytes(n: int, dim: int) -> tuple[int, int]:
    """Bytes that a process gives to the others, and those of its latents."""
    sent = []

    def gather(tensor: Tensor, group: object) -> list[Tensor]:
        sent.append(tensor.nbytes)
        return [tensor, tensor]

    metric = LatentSpectrum(dim, dist_sync_fn=gather, distributed_available_fn=lambda: True)
    metric.update(torch.randn(2048, dim))
    metric.compute()
    return sum(sent), 4 * n * dim


def _peak_bytes(n: int, dim: int) -> int:
    metric, peak = LatentSpectrum(dim), 0
    for batch in torch.zeros(min(n, 8192), dim).split(BATCH):
        metric.update(batch)
        peak = max(peak, sum(rows.nbytes for rows in metric.pending) + metric.moments.nbytes)
    return peak


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer rows, and nothing is written")
    args = parser.parse_args()
    torch.set_num_threads(1)
    threadpool_limits(1)  # NumPy's
    sizes = ((5_000, 128),) if args.quick else SIZES
    sections = [
        "Times of one way over that of another are the median of interleaved rounds, with the middle 80 % of them; "
        f"float32 latents in batches of {BATCH}, one thread unless said. An epoch is everything from the first batch "
        "to the singular values. What each way resolves, and the error of its effective rank, are those of "
        "[Accuracy of the rank monitor](../monitor_accuracy/README.md): the smallest ratio of singular values right "
        "to 10 %, and the relative error on float64 latents whose singular values fall from 1 to 1e-7.",
    ]
    accuracy = accuracy_of_ways(2000 if args.quick else 20_000)
    record = []
    for n, dim in sizes:
        ways, times = costs(n, dim)
        sections += [f"## {n} x {dim}", table_of_ways(times, n, dim, accuracy)]
        for way in ways:
            over = ratio(times, way, "all rows, svdvals float32")
            record.append([n, dim, way, milliseconds(times, way), over.median, over.low, over.high])
    forward = [update_cost(threads, 3 if args.quick else 21) for threads in (1, 2)]
    header = ["threads", "update, ms", "encoder forward, ms", "update / forward", "at most 1 %"]
    sections += [f"## Taking in a batch of {IMAGES} beside the encoder of IRMAE's network for MNIST"]
    sections += [report.markdown(header, forward), "## Bytes that each process sends"]
    sent = [[n, dim, *exchanged_bytes(n, dim)] for n, dim in sizes]
    sections += [
        report.markdown(
            ["rows a process", "dim", "LatentSpectrum", "gathering the latents", "ratio"],
            [[*row, f"1 : {row[3] / row[2]:.0f}"] for row in sent],
        )
    ]
    body = "\n\n".join(sections)
    print(body)
    if args.quick:
        return
    path = report.write("monitor", "Cost of the rank monitor", body)
    with (path.parent / "epochs.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["rows", "dim", "way", "ms", "over_svdvals", "over_svdvals_p10", "over_svdvals_p90"])
        writer.writerows([f"{value:.4g}" if isinstance(value, float) else value for value in row] for row in record)
    print(path)


if __name__ == "__main__":
    main()
