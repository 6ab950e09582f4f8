"""What the rank of a whole split costs, beside other ways to get it, and what each way can tell.

On the CPU, and on a GPU where there is one.
"""

import time
from collections.abc import Callable, Sequence
from typing import Literal

import study
import torch
from monitor_accuracy import BATCH, NUMPY, OURS, SVD, WAYS, errors, resolved
from tables import Row, Rows, different, markdown, where
from threadpoolctl import threadpool_limits
from timing import Ratio, interleave, milliseconds, ratio
from torch import Tensor

from lightning_rank.metrics import LatentSpectrum
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


def accuracy_of_ways(n: int) -> dict[str, Row]:
    """What each way resolves, and the error of its effective rank, without and with an offset of the mean."""
    near, far = resolved(n, 0.0), resolved(n, 100.0)
    (_, error), (_, error_far) = errors(n, "1 to 1e-7 in 64 steps"), errors(n, "the same, offset 100")
    columns = {
        "resolves": near,
        "resolves, offset 100": far,
        "error of effective rank": error,
        "the same, offset 100": error_far,
    }
    return {way: {title: found[way] for title, found in columns.items()} for way in WAYS}


def reached(times: dict[str, Tensor], n: int, dim: int, update: Ratio, accuracy: Row) -> list[Row]:
    """The figures to reach."""
    figures = [
        (f"epoch of {n} x {dim} over all rows, svdvals float32", ratio(times, OURS, SVD), 0.55),
        (f"the same over {MATMUL}", ratio(times, OURS, MATMUL), 1.25),
        (f"update over the encoder's forward, {IMAGES} images, one thread", update, 0.01),
        ("smallest ratio resolved, offset 100", accuracy["resolves, offset 100"], 1e-7),
        ("error of the effective rank, offset 100", accuracy["the same, offset 100"], 1e-5),
    ]
    return [
        {"figure": what, "found": found, "at most": most}
        | {"reached": "yes" if (found.median if isinstance(found, Ratio) else found) <= most * 1.0001 else "no"}
        for what, found, most in figures
    ]


def ways_of(times: dict[str, Tensor], threads: int, n: int, dim: int, accuracy: dict[str, Row]) -> list[Row]:
    """Time, memory, and what can be told apart, a row each way."""
    memory = {
        OURS: _peak_bytes(n, dim),
        SVD: 4 * n * dim,
        NUMPY: 4 * n * dim,
        "sums, float64": 8 * dim * (dim + 1),
        "sums, float32": 4 * dim * (dim + 1),
        "queue of 2048, not centred": 4 * 2048 * dim,
    }
    return [
        {"size": f"{n} x {dim}" + (", two threads" if threads > 1 else ""), "way": way}
        | {"time / (all rows, svdvals)": ratio(times, way, SVD), f"time / {MATMUL}": ratio(times, way, MATMUL)}
        | {"latents or sums kept, MiB": memory[way] / 2**20, **accuracy[way]}
        for way in WAYS
        if way in times
    ]


def record(times: dict[str, Tensor], threads: int, n: int, dim: int) -> list[Row]:
    """The same times as numbers."""
    settings = {"rows": n, "dim": dim, "threads": threads}
    found = {way: ratio(times, way, SVD) for way in times}
    return [
        {**settings, "way": way, "ms": milliseconds(times, way), "over_svdvals": over.median}
        | {"over_svdvals_p10": over.low, "over_svdvals_p90": over.high}
        for way, over in found.items()
    ]


def update_cost(threads: int, rounds: int, device: str) -> tuple[Ratio, Row]:
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
    row = {"threads": threads, "update, ms": milliseconds(times, "update") / 8}
    row |= {"encoder forward, ms": milliseconds(times, "forward") / 8, "update / forward": found}
    return found, row


def exchanged_bytes(n: int, dim: int) -> Row:
    """Bytes that a process gives to the others, and those of its latents."""
    sent = []

    def gather(tensor: Tensor, group: object) -> list[Tensor]:
        sent.append(tensor.nbytes)
        return [tensor, tensor]

    metric = LatentSpectrum(dim, dist_sync_fn=gather, distributed_available_fn=lambda: True)
    metric.update(torch.randn(2048, dim))
    metric.compute()
    all_of_them = 4 * n * dim
    row = {"rows a process": n, "dim": dim, "LatentSpectrum": sum(sent), "gathering the latents": all_of_them}
    return row | {"ratio": f"1 : {all_of_them / sum(sent):.0f}"}


def where_to_decompose() -> list[Row]:
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
        ours = {"dim": dim, "on the GPU, ms": milliseconds(times, "there")}
        table.append(ours | {"CPU / GPU": ratio(times, "on the CPU", "there")})
    return table


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


def measure(
    device: Literal["cpu", "cuda"] = "cuda" if torch.cuda.is_available() else "cpu",
    sizes: Sequence[tuple[int, int]] = SIZES,
    threads: Sequence[int] = (1, 2),
    rows: int = 20_000,
    rounds: int = 21,
) -> study.Tables:
    """Epochs of all sizes, of the first on two threads as well; updates; bytes that are sent."""
    _set_threads(1)
    accuracy = accuracy_of_ways(rows)
    jobs = [(1, *size) for size in sizes] + [(2, *sizes[0])] * (2 in threads and device == "cpu")
    times = {}
    for job in jobs:
        _set_threads(job[0])
        times[job] = costs(*job[1:], device)
    _set_threads(1)
    updates = [update_cost(number, rounds, device) for number in (1, 2)]
    tables = {
        "epochs": [row for job, found in times.items() for row in record(found, *job)],
        "ways": [row for job, found in times.items() for row in ways_of(found, *job, accuracy)],
        "required": reached(times[jobs[0]], *sizes[0], updates[0][0], accuracy[OURS]),
        "updates": [row for _, row in updates],
        "sent": [exchanged_bytes(*size) for size in sizes],
    }
    return tables | ({"decomposition": where_to_decompose()} if device == "cuda" else {})


def text(ways: Rows, required: Rows, updates: Rows, sent: Rows, decomposition: Rows = ()) -> str:
    """The report."""
    of_sizes = "\n\n".join(
        f"## {size}\n\n{markdown([{k: v for k, v in row.items() if k != 'size'} for row in where(ways, size=size)])}"
        for size in different(ways, "size")
    )
    return f"""Times of one way over that of another are the median of interleaved rounds, with the middle 80 % of them;
float32 latents in batches of {BATCH}, one thread unless said. The time of one thread of a CPU is processor time; that
of two is wall-clock, which says little where other work is on the cores. An epoch is everything from the first batch to
the singular values. What each way resolves, and the error of its effective rank, are those of
[Accuracy of the rank monitor](../monitor_accuracy/README.md): the smallest ratio of singular values right to 10 %, and
the relative error on float64 latents whose singular values fall from 1 to 1e-7.

## Figures to reach

{markdown(required)}

{of_sizes}

## Taking in a batch of {IMAGES} beside the encoder of IRMAE's network for MNIST

{markdown(updates)}

## Bytes that each process sends

{markdown(sent)}""" + (f"\n\n## Where to decompose\n\n{markdown(decomposition)}" if decomposition else "")


STUDY = study.Study(
    name=lambda device: "monitor" if device == "cpu" else "monitor_cuda",
    title="Cost of the rank monitor",
    measure=measure,
    text=text,
    quick={"sizes": ((5_000, 128),), "threads": (1,), "rows": 2000, "rounds": 3},
    flags={"device": "that is measured"},
)
if __name__ == "__main__":
    STUDY.main()
