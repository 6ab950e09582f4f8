"""How exact the spectrum of LatentSpectrum is, beside other ways to get one.

The truth is NumPy's SVD, in float64, of all rows at once.
"""

import resource
import time

import numpy as np
import study
import torch
from tables import Row, Rows, markdown
from threadpoolctl import threadpool_limits
from torch import Tensor

from lightning_rank.functional import effective_rank
from lightning_rank.metrics import LatentSpectrum

BATCH = 500


def rows_with(spectrum: Tensor, n: int, offset: float, dtype: torch.dtype) -> Tensor:
    """Rows with exactly these standard deviations along random axes, ``offset`` times the largest from the origin."""
    generator = torch.Generator().manual_seed(0)
    rank = len(spectrum)
    noise = torch.randn(n, rank, generator=generator, dtype=torch.float64)
    scores = torch.linalg.qr(noise - noise.mean(0)).Q * n**0.5 * spectrum
    axes = torch.linalg.qr(torch.randn(128, rank, generator=generator, dtype=torch.float64)).Q
    return (scores @ axes.T + offset * spectrum[0]).to(dtype)


def ours(rows: Tensor) -> Tensor:
    """LatentSpectrum, batch by batch."""
    metric = LatentSpectrum(rows.shape[1]).to(rows.device)
    for batch in rows.split(BATCH):
        metric.update(batch)
    return metric.compute()


def all_rows_float32(rows: Tensor) -> Tensor:
    """Keep all rows, centre, ``svdvals`` in float32."""
    rows = rows.float()
    return torch.linalg.svdvals(rows - rows.mean(0))


def covariance(rows: Tensor) -> Tensor:
    """Keep all rows, ``np.cov``, SVD of the covariance (as the script of IRMAE does)."""
    array = (rows.float() if rows.dtype == torch.bfloat16 else rows).numpy()
    return torch.from_numpy(np.linalg.svd(np.cov(array, rowvar=False), compute_uv=False)).sqrt()


def sums(rows: Tensor, dtype: torch.dtype) -> Tensor:
    """Sums of ``z`` and ``z z^T``."""
    total, square = 0, 0
    for batch in rows.to(dtype).split(BATCH):
        total, square = total + batch.sum(0), square + batch.T @ batch
    mean = total / len(rows)
    return torch.linalg.eigvalsh(square / len(rows) - torch.outer(mean, mean)).flip(0).clamp(min=0).sqrt().double()


def rankme(rows: Tensor) -> Tensor:
    """A queue of the last 2048 rows, not centred, 1e-5 added after normalising (as RankMe is often written)."""
    values = torch.linalg.svdvals(rows[-2048:].float())
    return values / values.sum() + 1e-5


OURS, SVD, NUMPY = "LatentSpectrum", "all rows, svdvals float32", "all rows, np.cov and SVD"
WAYS = {
    OURS: ours,
    SVD: all_rows_float32,
    NUMPY: covariance,
    "sums, float64": lambda rows: sums(rows, torch.float64),
    "sums, float32": lambda rows: sums(rows, torch.float32),
    "queue of 2048, not centred": rankme,
}
FLAT = torch.ones(10, dtype=torch.float64)
FALLING = torch.logspace(0, -7, 64, dtype=torch.float64)
CASES = {
    "1 to 1e-7 in 64 steps": (FALLING, 0.0, torch.float64),
    "the same, offset 100": (FALLING, 100.0, torch.float64),
    "the same, float32 latents, offset 100": (FALLING, 100.0, torch.float32),
    "rank 10 of 128, all equal": (FLAT, 0.0, torch.float64),
    "rank 10, offset 100": (FLAT, 100.0, torch.float64),
    "rank 10, float32 latents, offset 100": (FLAT, 100.0, torch.float32),
    "rank 10, bfloat16 latents": (FLAT, 0.0, torch.bfloat16),
}


def true_effective_rank(rows: Tensor) -> float:
    """By NumPy, in float64."""
    exact = rows.double().numpy()
    values = np.linalg.svd(exact - exact.mean(0), compute_uv=False)
    p = values / values.sum()
    return float(np.exp(-(p[p > 0] * np.log(p[p > 0])).sum()))


def errors(n: int, case: str) -> tuple[float, dict[str, float]]:
    """The true effective rank of a case, and the relative error of each way."""
    spectrum, offset, dtype = CASES[case]
    rows = rows_with(spectrum, n, offset, dtype)
    truth = true_effective_rank(rows)
    return truth, {name: abs(effective_rank(way(rows)).item() / truth - 1) for name, way in WAYS.items()}


def resolved(n: int, offset: float) -> dict[str, float]:
    """Smallest ratio of singular values that each way has right to 10 %, all larger ones included."""
    rows = rows_with(FALLING, n, offset, torch.float64)
    smallest = {}
    for name, way in WAYS.items():
        values = way(rows)[: len(FALLING)].double()
        right = ((values / values[0] / FALLING - 1).abs() < 0.1).int().cumprod(0).sum()
        smallest[name] = FALLING[right - 1].item()
    return smallest


def wide(dim: int, n: int = 8192) -> list[Row]:
    """Time and memory at a width."""
    metric = LatentSpectrum(dim)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    for _ in range(n // 256):
        metric.update(torch.randn(256, dim))
    metric.as_moments()
    accumulated = time.perf_counter() - start
    metric.compute()
    decomposed = time.perf_counter() - start - accumulated
    more = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    state = metric.scatter.nbytes / 2**20
    row = {"dim": dim, "rows": n, "taking in, s": accumulated, "decomposing, s": decomposed, "state, MiB": state}
    return [row | {"peak above start, MiB": more, "peak / state": f"{more / state:.1f}"}]


def measure(rows: int = 20_000, dim: int = 4096) -> study.Tables:
    """How exact each way is, and what a wide layer takes."""
    threadpool_limits(1)  # NumPy's
    found = {case: errors(rows, case) for case in CASES}
    return {
        "errors": [{"latents": case, "true effective rank": truth, **off} for case, (truth, off) in found.items()],
        "resolved": [{"latents": f"offset {offset:g}", **resolved(rows, offset)} for offset in (0.0, 100.0)],
        "wide": wide(dim),
    }


def text(errors: Rows, resolved: Rows, wide: Rows, rows: int) -> str:
    """The report."""
    return f"""Relative error of the effective rank over {rows} rows of width 128, in batches of {BATCH}; the truth is
NumPy's SVD of all rows in float64. The queue holds other rows than the whole split: part of its error.

{markdown(errors)}

Smallest ratio of a singular value to the largest that is right to 10 %, all larger ones included:

{markdown(resolved)}

A wide layer, float32 latents, batches of 256:

{markdown(wide)}"""


STUDY = study.Study(
    name="monitor_accuracy",
    title="Accuracy of the rank monitor",
    measure=measure,
    text=text,
    quick={"rows": 2000, "dim": 256},
    flags={"dim": "the width to measure time and memory at"},
)
if __name__ == "__main__":
    STUDY.main()
