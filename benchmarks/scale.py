"""What the spectrum of latents costs as processes, layers, widths, positions and epochs grow.

The processes are real, over gloo, on the cores that there are: what they hold and send is that of any machine, their
time is not. ``--before REVISION`` measures the package of that git revision beside this one, in the same processes.
``--quick`` takes small sizes and writes nothing.
"""

import argparse
import logging
import time
from collections.abc import Callable
from types import ModuleType

import report
import torch
from checkpoints import checkpoint_bytes
from gloo import exchange, in_processes
from revision import load_revision
from threadpoolctl import threadpool_limits
from timing import interleave, milliseconds, ratio
from torch import Tensor

import lightning_rank.metrics
from lightning_rank.functional.moments import upper_strips

MIB = 2**20
MEMORY = 6 * 2**30  # of all processes together; what would take more is not run
EPOCH, BATCHES = (100_000, 128), (256, 500, 1024)
Versions = dict[str, ModuleType]


def table_of_processes(versions: Versions, world_sizes: list[int], dims: list[int]) -> str:
    """One layer, against processes and width."""
    rows = []
    for dim in dims:
        state = 8 * dim**2
        for world_size in world_sizes:
            row: list[object] = [dim, state / MIB, world_size]
            for package in versions.values():
                gathers = not hasattr(package.metrics, "synchronize")
                held = state * (2 * world_size + 4 if gathers else 6)
                if held * world_size > MEMORY:
                    row += ["not run", "", ""]
                    continue
                seconds, peak, _, sent = zip(*in_processes(world_size, exchange, package, [dim]), strict=True)
                row += [max(peak) / MIB, sent[0] / MIB, 1000 * max(seconds)]
            rows.append(row)
    header = ["dim", "state, MiB", "processes"]
    for version in versions:
        header += [f"{version}: peak above state, MiB", "sent by each, MiB", "ms"]
    return report.markdown(header, rows)


def table_of_layers(versions: Versions, counts: list[int]) -> str:
    """Several layers of different widths, two processes."""
    rows = []
    for count in counts:
        dims = [(64, 128, 256, 512)[index % 4] for index in range(count)]
        row: list[object] = [count]
        for package in versions.values():
            seconds, peak, calls, sent = zip(*in_processes(2, exchange, package, dims), strict=True)
            row += [calls[0], sent[0] / MIB, max(peak) / MIB, 1000 * max(seconds)]
        rows.append(row)
    header = ["layers"]
    for version in versions:
        header += [f"{version}: collectives", "sent by each, MiB", "peak above state, MiB", "ms"]
    return report.markdown(header, rows)


def epoch(package: ModuleType, rows: Tensor, batch: int) -> Callable[[], object]:
    """Everything from the first batch to the singular values."""

    def call() -> Tensor:
        spectrum = package.metrics.LatentSpectrum(rows.shape[1])
        for part in rows.split(batch):
            spectrum.update(part)
        return spectrum.compute()

    return call


def epochs(rank: int, versions: Versions, n: int, dim: int, threads: int, budget: float) -> dict[str, Tensor]:
    """Seconds of an epoch, of one float64 product and of all rows at once."""
    torch.set_num_threads(threads)
    rows = torch.randn(n, dim, generator=torch.Generator().manual_seed(rank))
    wide = rows.double()

    def all_rows() -> Tensor:
        joined = torch.cat(rows.split(500))
        return torch.linalg.svdvals(joined - joined.mean(0))

    ways: dict[str, Callable[[], object]] = {"product": lambda: wide.T @ wide, "svdvals": all_rows}
    for version, package in versions.items():
        ways |= {f"{version}, {batch}": epoch(package, rows, batch) for batch in BATCHES}
    clock = time.process_time if threads == 1 else time.perf_counter
    return interleave(ways, rounds=9, budget=budget, clock=clock)


def table_of_epochs(versions: Versions, n: int, dim: int, runs: int, budget: float) -> str:
    """The epoch with figures to reach, in several runs."""
    rows = []
    for threads in (1, 2):
        found = [
            in_processes(1, epochs, versions, n, dim, threads, budget)[0] for _ in range(runs if threads == 1 else 1)
        ]
        for batch in BATCHES:
            row: list[object] = [threads, batch]
            for version in versions:
                for over in ("product", "svdvals"):
                    row.append(report.spread([ratio(times, f"{version}, {batch}", over).median for times in found]))
            if len(versions) > 1:
                row.append(report.spread([ratio(t, f"now, {batch}", f"before, {batch}").median for t in found]))
            rows.append(row)
    header = ["threads", "batch", *(f"{version} / {way}" for version in versions for way in ("product", "svdvals"))]
    return report.markdown(header + ["now / before"] * (len(versions) > 1), rows)


def table_of_widths(versions: Versions, dims: list[int], most_run: int, budget: float) -> str:
    """Taking in rows in batches of 256, and what is held and sent."""
    rows = []
    for dim in dims:
        buffered, message = max(2048, dim), _message(dim)
        held = 8 * dim * (dim + buffered)
        row: list[object] = [dim, 8 * dim**2 / MIB, held / MIB, message / MIB]
        if dim > most_run:
            rows.append(row + ["not run"] * len(versions))
            continue
        latents = torch.randn(max(4096, dim), dim)
        wide = latents.double()
        ways: dict[str, Callable[[], object]] = {"product": lambda wide=wide: wide.T @ wide}
        for version, package in versions.items():
            ways[version] = _taking_in(package, latents)
        times = interleave(ways, rounds=7, budget=budget, clock=time.process_time)
        rows.append(row + [ratio(times, version, "product") for version in versions])
    header = ["dim", "state, MiB", "state and buffer, MiB", "message, MiB", *(f"{v} / product" for v in versions)]
    return report.markdown(header, rows)


def _message(dim: int) -> int:
    return 8 * sum(strip.numel() for strip in upper_strips(torch.empty(dim, dim, device="meta")))


def _taking_in(package: ModuleType, latents: Tensor) -> Callable[[], object]:
    def call() -> object:
        spectrum = package.metrics.LatentSpectrum(latents.shape[1])
        for part in latents.split(256):
            spectrum.update(part)
        return spectrum.as_moments()

    return call


def table_of_positions(size: int) -> str:
    """An update with latents ``(64, 64, size, size)``."""
    latents = torch.randn(64, 64, size, size)
    shares = [None, 16384, 4096, 1024]
    spectra = {share: lightning_rank.metrics.LatentSpectrum(64, max_rows=share) for share in shares}
    ways = {str(share): lambda spectrum=spectrum: spectrum.update(latents) for share, spectrum in spectra.items()}
    times = interleave(ways, rounds=5, clock=time.process_time)
    rows: list[list[object]] = []
    for share, spectrum in spectra.items():
        spectrum.reset()
        spectrum.update(latents)
        rows.append([share, int(spectrum.samples), milliseconds(times, str(share)), ratio(times, str(share), "None")])
    return report.markdown(["max_rows", "rows that count", "update, ms", "over all rows"], rows)


def table_of_checkpoints(versions: Versions, dim: int, at: list[int], beyond: int) -> str:
    """What the monitor adds to every checkpoint; ``beyond`` is on the line through the last two."""
    found = [in_processes(1, checkpoint_bytes, package, dim, at)[0] for package in versions.values()]
    rows = [[str(n), *(sizes[index] / MIB for sizes in found)] for index, n in enumerate(at)]
    slopes = [(sizes[-1] - sizes[-2]) / (at[-1] - at[-2]) for sizes in found]
    far = [(sizes[-1] + slope * (beyond - at[-1])) / MIB for sizes, slope in zip(found, slopes, strict=True)]
    rows.append([f"{beyond}, computed", *far])
    return report.markdown(["epochs", *(f"{version}, MiB" for version in versions)], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small sizes, and nothing is written")
    parser.add_argument("--before", metavar="REVISION", help="a git revision to measure beside this version")
    args = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    threadpool_limits(1)
    versions = {"before": load_revision(args.before)} if args.before else {}
    versions["now"] = lightning_rank
    quick = args.quick
    n, dim = (4000, 32) if quick else EPOCH
    budget, size, width = (0.5, 8, 16) if quick else (60, 32, 64)
    told = f"; *before* is the package of revision {args.before}, in the same processes" if args.before else ""
    sections = []

    def section(title: str, text: str, table: str) -> None:
        sections.append(f"## {title}\n\n{text}\n\n{table}")
        print(sections[-1], end="\n\n", flush=True)

    section(
        f"An epoch of {n} x {dim}",
        "Over one float64 product of all rows with themselves, and over all rows kept and `svdvals` in float32; "
        "medians of separate runs, with the smallest and the largest of them. Of two threads there is one run, of "
        "wall-clock time, which says little where other work is on the cores.",
        table_of_epochs(versions, n, dim, 1 if quick else 3, budget),
    )
    section(
        "Processes",
        "One layer is synchronized. The peak is that of the process with the largest; what is sent is counted as if "
        "collectives went round a ring. All processes share the cores, so that time is only a bound.",
        table_of_processes(versions, [2] if quick else [1, 2, 4, 8, 16], [64] if quick else [256, 1024, 2048]),
    )
    section(
        "Layers",
        "Of widths 64, 128, 256, 512 in turn, two processes.",
        table_of_layers(versions, [1, 3] if quick else [1, 2, 4, 8, 16]),
    )
    section(
        "Width",
        "Rows in batches of 256, 4096 or as many as features, over one float64 product of them, one thread; what a "
        "process holds, and sends to another in one message. What is not run is computed.",
        table_of_widths(versions, [64, 8192] if quick else [2**power for power in range(6, 14)], 2048, budget),
    )
    section("Positions", f"One update of 64 images of 64 x {size} x {size}.", table_of_positions(size))
    section(
        "Epochs",
        f"What the monitor adds to a checkpoint, {width} latents, by `torch.save`.",
        table_of_checkpoints(versions, width, [1, 3] if quick else [10, 100, 1000], 10 if quick else 10_000),
    )
    if not quick:
        head = f"What spectra cost as things grow{told}. Ratios are medians of interleaved rounds. "
        head += "Times of one thread are processor time."
        print(report.write("scale", "Costs that grow", "\n\n".join([head, *sections])))


if __name__ == "__main__":
    main()
