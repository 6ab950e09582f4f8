"""The numbers that EffectiveRankMonitor logs."""

from collections.abc import Mapping

import torch
from torch import Tensor

from lightning_rank import functional
from lightning_rank.callbacks._history import Measure
from lightning_rank.callbacks._tap import LayerTap
from lightning_rank.functional.moments import RESOLUTION
from lightning_rank.metrics import RowStatistics


def measure_layer(
    tap: LayerTap,
    split: str,
    taken: Mapping[int | None, RowStatistics | None],
    variance_rtol: float,
    values: dict[Measure, float],
    spectra: dict[Measure, Tensor],
) -> None:
    """Add all numbers of a layer, and the spectra that they are read off.

    To be called on every process, for a sharded composed matrix is gathered.

    Args:
        tap: On the layer.
        split: What was taken in.
        taken: The rows of each dataloader; ``None`` if there were none.
        variance_rtol: Threshold of the numerical rank.
        values: Numbers are added here.
        spectra: Spectra are added here, the latents' under no name and those of the matrix as ``weight_``.
    """
    for loader, rows in taken.items():
        if rows is not None:
            of = Measure(split, tap.layer, loader, "")
            measures, spectra[of] = _of_latents(rows, variance_rtol)
            values |= {of._replace(name=name): float(value) for name, value in measures.items()}
    weight = tap.weight()
    if weight is not None:
        of = Measure(split, tap.layer, None, "weight_")
        spectra[of] = _of_weight(weight)
        values[of._replace(name="weight_effective")] = float(functional.effective_rank(spectra[of]))


def _of_latents(taken: RowStatistics, variance_rtol: float) -> tuple[dict[str, Tensor | float], Tensor]:
    """What is logged of the rows of a split, by name, and their principal deviations, on the CPU."""
    moments = taken.moments
    deviations = functional.principal_deviations(moments).cpu()
    # Of n rows there are n uncentred singular values at most, and each of them counts for something in RankMe.
    uncentred = functional.uncentred_deviations(moments).cpu()[: max(1, int(moments.n))]
    measures = {
        "effective": functional.effective_rank(deviations),
        "numerical": functional.numerical_rank(deviations, variance_rtol=variance_rtol),
        "participation": functional.participation_ratio(deviations),
        "stable": functional.stable_rank(deviations),
        "gap": functional.spectral_gap(deviations, rtol=RESOLUTION),
        "directions_95": functional.directions_for_variance(deviations, share=0.95),
        "alpha": functional.power_law_exponent(deviations) if len(deviations) > 1 else torch.nan,
        "rankme": functional.rankme(uncentred),
        "condition": functional.condition_number(deviations),
        "samples": moments.n,
        "dropped_rows": taken.dropped,
    }
    return measures, deviations


def _of_weight(weight: Tensor) -> Tensor:
    """In float64 on the CPU; NaN for a matrix with NaN, which the decomposition would refuse and end the training."""
    if not weight.isfinite().all():
        return torch.full((min(weight.shape),), torch.nan, dtype=torch.float64)
    wide = weight if weight.device.type == "mps" else weight.to(torch.float64)  # MPS has no float64
    return torch.linalg.svdvals(wide).to("cpu", torch.float64)
