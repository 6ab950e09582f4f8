"""What the rank of a whole split costs, beside other ways to get it, and what each way can tell.

On the CPU, and on a GPU where there is one. ``--quick`` takes fewer rows and writes nothing.
"""

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import report
import torch
from monitor_accuracy import BATCH, NUMPY, OURS, SVD, WAYS, errors, resolved
from threadpoolctl import threadpool_limits
from timing import Ratio, interleave, milliseconds, ratio
from torch import Tensor

from lightning_rank.metrics import LatentSpectrum

sys.path.append(str(Path(__file__).parents[1] / "examples"))
from rank_trainer.autoencoders import convolutional_autoencoder

IMAGES = 256
SIZES = ((100_000, 128), (100_000, 64), (50_000, 256), (20_000, 512))  # the first has figures to reach
MATMUL = "one float64 matmul"


def float64_matmul(rows: Tensor) -> Callable[[], Tensor]:
    """One matrix product in float64 of all rows with themselves: what the second moment costs at least."""
    wide = rows.double()
    return lambda: wide.T @ wide


def costs(n: int, dim: int, device: str) -> dict[str, Tensor]:
    """Time of an epoch, each way, on float32 latents that come in batches."""
    rows = torch.randn(n, dim, generator=torch.Generator().manual_seed(0)).to(device)
    ways = {name: way for name, way in WAYS.items() if name != NUMPY or device == "cpu"}
    calls: dict[str, Callable[[], object]] = {name: lambda way=way: way(rows) for name, way in ways.items()}
    return interleave(calls | {MATMUL: float64_matmul(rows)}, rounds=9, budget=90, clock=_clock())


def accuracy_of_ways(n: int) -> dict[str, list[float]]:
    """What each way resolves, and the error of its effective rank, without and with an offset of the mean."""
    near, far = resolved(n, 0.0), resolved(n, 100.0)
    (_, error), (_, error_far) = errors(n, "1 to 1e-7 in 64 steps"), errors(n, "the same, offset 100")
    return {way: [near[way], far[way], error[way], error_far[way]] for way in WAYS}


def required(times: dict[str, Tensor], update: Ratio, accuracy: dict[str, list[float]]) -> str:
    """The figures to reach."""
    _, resolved_far, _, error_far = accuracy[OURS]
    n, dim = SIZES[0]
    figures = [
        (f"epoch of {n} x {dim} over all rows, svdvals float32", ratio(times, OURS, SVD), 0.55),
        (f"the same over {MATMUL}", ratio(times, OURS, MATMUL), 1.25),
        (f"update over the encoder's forward, {IMAGES} images, one thread", update, 0.01),
        ("smallest ratio resolved, offset 100", resolved_far, 1e-7),
        ("error of the effective rank, offset 100", error_far, 1e-5),
    ]
    rows = [
        [what, found, most, _yes((found.median if isinstance(found, Ratio) else found) <= most * 1.0001)]
        for what, found, most in figures
    ]
    return report.markdown(["figure", "found", "at most", "reached"], rows)


def table_of_ways(times: dict[str, Tensor], n: int, dim: int, accuracy: dict[str, list[float]]) -> str:
    """Time, memory, and what can be told apart, a row each way."""
    memory = {
        OURS: _peak_bytes(n, dim),
        SVD: 4 * n * dim,
        NUMPY: 4 * n * dim,
        "sums, float64": 8 * dim * (dim + 1),
        "sums, float32": 4 * dim * (dim + 1),
        "queue of 2048, not centred": 4 * 2048 * dim,
    }
    table = [
        [way, ratio(times, way, SVD), ratio(times, way, MATMUL), memory[way] / 2**20, *accuracy[way]]
        for way in WAYS
        if way in times
    ]
    header = ["way", "time / (all rows, svdvals)", f"time / {MATMUL}", "latents or sums kept, MiB"]
    header += ["resolves", "resolves, offset 100", "error of effective rank", "the same, offset 100"]
    return report.markdown(header, table)


def rows_of_ways(times: dict[str, Tensor], n: int, dim: int, threads: int = 1) -> list[dict[str, object]]:
    """The same times for the CSV file."""
    return [
        {
            "rows": n,
            "dim": dim,
            "threads": threads,
            "way": way,
            "ms": milliseconds(times, way),
            "over_svdvals": over.median,
            "over_svdvals_p10": over.low,
            "over_svdvals_p90": over.high,
        }
        for way in times
        for over in [ratio(times, way, SVD)]
    ]


def update_cost(threads: int, rounds: int, device: str) -> tuple[Ratio, list[Any]]:
    """Taking in a batch over the forward pass of IRMAE's encoder for MNIST that made it."""
    _set_threads(threads)
    encoder = convolutional_autoencoder(channels=1).encoder.eval().to(device)
    metric = LatentSpectrum(128).to(device)
    images = torch.rand(IMAGES, 1, 32, 32, device=device)
    with torch.no_grad():
        latents = encoder(images)

        def updates() -> None:
            for _ in range(8):  # the eighth fills the buffer
                metric.update(latents)

        def forwards() -> None:
            for _ in range(8):
                encoder(images)

        times = interleave({"update": updates, "forward": forwards}, rounds=rounds, budget=60, clock=_clock())
    _set_threads(1)
    found = ratio(times, "update", "forward")
    return found, [threads, milliseconds(times, "update") / 8, milliseconds(times, "forward") / 8, found]


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


def where_to_decompose() -> str:
    """``eigvalsh`` of a matrix on the GPU: there, or copied to the CPU and its values back."""
    table = []
    for dim in (32, 64, 128, 256, 512, 1024, 2048):
        rows = torch.randn(2 * dim, dim, dtype=torch.float64, device="cuda")
        scatter = rows.T @ rows
        ways = {
            "there": lambda scatter=scatter: torch.linalg.eigvalsh(scatter),
            "on the CPU": lambda scatter=scatter: torch.linalg.eigvalsh(scatter.cpu()).to("cuda"),
        }
        times = interleave(ways, budget=10)
        table.append([dim, milliseconds(times, "there"), ratio(times, "on the CPU", "there")])
    return report.markdown(["dim", "on the GPU, ms", "CPU / GPU"], table)


def _peak_bytes(n: int, dim: int) -> int:
    metric, peak = LatentSpectrum(dim), 0
    for batch in torch.zeros(min(n, 8192), dim).split(BATCH):
        metric.update(batch)
        held = metric.pending.untyped_storage().nbytes() + metric.scatter.nbytes + metric.mean.nbytes
        peak = max(peak, held)
    return peak


def _set_threads(threads: int) -> None:
    torch.set_num_threads(threads)
    threadpool_limits(threads)  # NumPy's


def _clock() -> Callable[[], float]:
    """Of the processor where that is enough: of one thread."""
    return time.process_time if torch.get_num_threads() == 1 else time.perf_counter


def _yes(reached: bool) -> str:
    return "yes" if reached else "no"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer rows, and nothing is written")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=("cpu", "cuda"))
    args = parser.parse_args()
    _set_threads(1)
    sizes = ((5_000, 128),) if args.quick else SIZES
    accuracy = accuracy_of_ways(2000 if args.quick else 20_000)
    times = {size: costs(*size, args.device) for size in sizes}
    updates = [update_cost(threads, 3 if args.quick else 21, args.device) for threads in (1, 2)]
    sections = [
        "Times of one way over that of another are the median of interleaved rounds, with the middle 80 % of them; "
        f"float32 latents in batches of {BATCH}, one thread unless said. The time of one thread of a CPU is processor "
        "time; that of two is wall-clock, which says little where other work is on the cores. "
        "An epoch is everything from the first batch to the singular values. What each way resolves, and the error of "
        "its effective rank, are those of [Accuracy of the rank monitor](../monitor_accuracy/README.md): the smallest "
        "ratio of singular values right to 10 %, and the relative error on float64 latents whose singular values fall "
        "from 1 to 1e-7."
    ]
    if not args.quick:
        sections += ["## Figures to reach", required(times[SIZES[0]], updates[0][0], accuracy)]
    for n, dim in sizes:
        sections += [f"## {n} x {dim}", table_of_ways(times[n, dim], n, dim, accuracy)]
    record = [row for size, found in times.items() for row in rows_of_ways(found, *size)]
    if not args.quick and args.device == "cpu":
        n, dim = SIZES[0]
        _set_threads(2)
        found = costs(n, dim, args.device)
        _set_threads(1)
        sections += [f"## {n} x {dim}, two threads", table_of_ways(found, n, dim, accuracy)]
        record += rows_of_ways(found, n, dim, threads=2)
    header = ["threads", "update, ms", "encoder forward, ms", "update / forward"]
    sections += [f"## Taking in a batch of {IMAGES} beside the encoder of IRMAE's network for MNIST"]
    sections += [report.markdown(header, [row for _, row in updates]), "## Bytes that each process sends"]
    sent = [[n, dim, *exchanged_bytes(n, dim)] for n, dim in sizes]
    sections += [
        report.markdown(
            ["rows a process", "dim", "LatentSpectrum", "gathering the latents", "ratio"],
            [[*row, f"1 : {row[3] / row[2]:.0f}"] for row in sent],
        )
    ]
    if args.device == "cuda":
        sections += ["## Where to decompose", where_to_decompose()]
    body = "\n\n".join(sections)
    print(body)
    if args.quick:
        return
    name = "monitor" if args.device == "cpu" else "monitor_cuda"
    report.write_csv(name, "epochs.csv", record)
    print(report.write(name, "Cost of the rank monitor", body))


if __name__ == "__main__":
    main()
