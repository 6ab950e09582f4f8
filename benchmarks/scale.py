"""What the spectrum of latents costs as processes, layers, widths, positions and epochs grow.

The processes are real, over gloo, on the cores that there are: what they hold and send is that of any machine, their
time is not. ``--before REVISION`` measures the package of that git revision beside this one, in the same processes.
"""

import logging
import time
from collections.abc import Callable, Sequence
from types import ModuleType

import study
import torch
from checkpoints import checkpoint_bytes
from gloo import exchange, in_processes
from revision import load_revision
from tables import Row, Rows, markdown, spread
from threadpoolctl import threadpool_limits
from timing import interleave, milliseconds, ratio
from torch import Tensor

import lightning_rank.metrics
from lightning_rank.functional.moments import upper_strips

MIB = 2**20
MEMORY = 6 * 2**30  # of all processes together; what would take more is not run
BATCHES = (256, 500, 1024)
Versions = dict[str, ModuleType]


def of_processes(versions: Versions, world_sizes: Sequence[int], dims: Sequence[int]) -> list[Row]:
    """One layer, against processes and width."""
    rows = []
    for dim, world_size in [(dim, world_size) for dim in dims for world_size in world_sizes]:
        state = 8 * dim**2
        row: Row = {"dim": dim, "state, MiB": state / MIB, "processes": world_size}
        for version, package in versions.items():
            gathers = not hasattr(package.metrics, "synchronize")
            titles = [f"{version}: {what}" for what in ("ms", "peak above state, MiB", "sent by each, MiB")]
            if state * (2 * world_size + 4 if gathers else 6) * world_size > MEMORY:
                row |= dict.fromkeys(titles, "not run")
                continue
            seconds, peak, _, sent = zip(*in_processes(world_size, exchange, package, [dim]), strict=True)
            row |= dict(zip(titles, (1000 * max(seconds), max(peak) / MIB, sent[0] / MIB), strict=True))
        rows.append(row)
    return rows


def of_layers(versions: Versions, counts: Sequence[int]) -> list[Row]:
    """Several layers of different widths, two processes."""
    rows = []
    for count in counts:
        dims = [(64, 128, 256, 512)[index % 4] for index in range(count)]
        row: Row = {"layers": count}
        for version, package in versions.items():
            seconds, peak, calls, sent = zip(*in_processes(2, exchange, package, dims), strict=True)
            row |= {f"{version}: collectives": calls[0], f"{version}: sent by each, MiB": sent[0] / MIB}
            row |= {f"{version}: peak above state, MiB": max(peak) / MIB, f"{version}: ms": 1000 * max(seconds)}
        rows.append(row)
    return rows


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


def of_epochs(versions: Versions, n: int, dim: int, runs: int, budget: float) -> list[Row]:
    """The epoch with figures to reach, in several runs."""
    rows = []
    for threads in (1, 2):
        found = [
            in_processes(1, epochs, versions, n, dim, threads, budget)[0] for _ in range(runs if threads == 1 else 1)
        ]

        def over(way: str, other: str, found: list[dict[str, Tensor]] = found) -> str:
            return spread([ratio(times, way, other).median for times in found])

        for batch in BATCHES:
            row: Row = {"threads": threads, "batch": batch}
            for version in versions:
                row |= {f"{version} / {way}": over(f"{version}, {batch}", way) for way in ("product", "svdvals")}
            if len(versions) > 1:
                row["now / before"] = over(f"now, {batch}", f"before, {batch}")
            rows.append(row)
    return rows


def of_widths(versions: Versions, dims: Sequence[int], most_run: int, budget: float) -> list[Row]:
    """Taking in rows in batches of 256, and what is held and sent."""
    rows = []
    for dim in dims:
        held = 8 * dim * (dim + max(2048, dim))
        row: Row = {"dim": dim, "state, MiB": 8 * dim**2 / MIB, "state and buffer, MiB": held / MIB}
        row["message, MiB"] = _message(dim) / MIB
        times: dict[str, Tensor] = {}
        if dim <= most_run:
            latents = torch.randn(max(4096, dim), dim)
            wide = latents.double()
            ways: dict[str, Callable[[], object]] = {"product": lambda wide=wide: wide.T @ wide}
            ways |= {version: _taking_in(package, latents) for version, package in versions.items()}
            times = interleave(ways, rounds=7, budget=budget, clock=time.process_time)
        rows.append(row | {f"{v} / product": ratio(times, v, "product") if times else "not run" for v in versions})
    return rows


def _message(dim: int) -> int:
    return 8 * sum(strip.numel() for strip in upper_strips(torch.empty(dim, dim, device="meta")))


def _taking_in(package: ModuleType, latents: Tensor) -> Callable[[], object]:
    def call() -> object:
        spectrum = package.metrics.LatentSpectrum(latents.shape[1])
        for part in latents.split(256):
            spectrum.update(part)
        return spectrum.as_moments()

    return call


def of_positions(size: int) -> list[Row]:
    """An update with latents ``(64, 64, size, size)``."""
    latents = torch.randn(64, 64, size, size)
    shares = [None, 16384, 4096, 1024]
    spectra = {share: lightning_rank.metrics.LatentSpectrum(64, max_rows=share) for share in shares}
    ways = {str(share): lambda spectrum=spectrum: spectrum.update(latents) for share, spectrum in spectra.items()}
    times = interleave(ways, rounds=5, clock=time.process_time)
    rows = []
    for share, spectrum in spectra.items():
        spectrum.reset()
        spectrum.update(latents)
        row = {"max_rows": share, "rows that count": int(spectrum.samples)}
        row["update, ms"] = milliseconds(times, str(share))
        rows.append(row | {"over all rows": ratio(times, str(share), "None")})
    return rows


def of_checkpoints(versions: Versions, dim: int, at: Sequence[int], beyond: int) -> list[Row]:
    """What the monitor adds to every checkpoint; ``beyond`` is on the line through the last two."""
    found = {version: in_processes(1, checkpoint_bytes, package, dim, at)[0] for version, package in versions.items()}
    rows = [
        {"epochs": str(n)} | {f"{version}, MiB": sizes[index] / MIB for version, sizes in found.items()}
        for index, n in enumerate(at)
    ]
    far: Row = {"epochs": f"{beyond}, computed"}
    for version, sizes in found.items():
        slope = (sizes[-1] - sizes[-2]) / (at[-1] - at[-2])
        far[f"{version}, MiB"] = (sizes[-1] + slope * (beyond - at[-1])) / MIB
    return [*rows, far]


def measure(
    before: str | None = None,
    epoch_size: tuple[int, int] = (100_000, 128),
    runs: int = 3,
    budget: float = 60,
    world_sizes: Sequence[int] = (1, 2, 4, 8, 16),
    dims: Sequence[int] = (256, 1024, 2048),
    counts: Sequence[int] = (1, 2, 4, 8, 16),
    widths: Sequence[int] = tuple(2**power for power in range(6, 14)),
    image_size: int = 32,
    width: int = 64,
    at: Sequence[int] = (10, 100, 1000),
    beyond: int = 10_000,
) -> study.Tables:
    """All that grows, one after the other, on one thread unless said."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    threadpool_limits(1)
    versions = {"before": load_revision(before)} if before else {}
    versions["now"] = lightning_rank
    return {
        "epochs": of_epochs(versions, *epoch_size, runs, budget),
        "processes": of_processes(versions, world_sizes, dims),
        "layers": of_layers(versions, counts),
        "widths": of_widths(versions, widths, 2048, budget),
        "positions": of_positions(image_size),
        "checkpoints": of_checkpoints(versions, width, at, beyond),
    }


def text(
    epochs: Rows,
    processes: Rows,
    layers: Rows,
    widths: Rows,
    positions: Rows,
    checkpoints: Rows,
    before: str | None,
    epoch_size: tuple[int, int],
    image_size: int,
    width: int,
) -> str:
    """The report."""
    told = f"; *before* is the package of revision {before}, in the same processes" if before else ""
    return f"""What spectra cost as things grow{told}. Ratios are medians of interleaved rounds. Times of one thread are
processor time.

## An epoch of {epoch_size[0]} x {epoch_size[1]}

Over one float64 product of all rows with themselves, and over all rows kept and `svdvals` in float32; medians of
separate runs, with the smallest and the largest of them. Of two threads there is one run, of wall-clock time, which
says little where other work is on the cores.

{markdown(epochs)}

## Processes

One layer is synchronized. The peak is that of the process with the largest; what is sent is counted as if collectives
went round a ring. All processes share the cores, so that time is only a bound.

{markdown(processes)}

## Layers

Of widths 64, 128, 256, 512 in turn, two processes.

{markdown(layers)}

## Width

Rows in batches of 256, 4096 or as many as features, over one float64 product of them, one thread; what a process holds,
and sends to another in one message. What is not run is computed.

{markdown(widths)}

## Positions

One update of 64 images of 64 x {image_size} x {image_size}.

{markdown(positions)}

## Epochs

What the monitor adds to a checkpoint, {width} latents, by `torch.save`.

{markdown(checkpoints)}"""


STUDY = study.Study(
    name="scale",
    title="Costs that grow",
    measure=measure,
    text=text,
    quick={"epoch_size": (4000, 32), "runs": 1, "budget": 0.5, "world_sizes": [2], "dims": [64], "counts": [1, 3]}
    | {"widths": [64, 8192], "image_size": 8, "width": 16, "at": [1, 3], "beyond": 10},
    flags={"before": "a git revision to measure beside this version"},
)
if __name__ == "__main__":
    STUDY.main()
