"""Pure functions of tensors: ranks, moments, composition, and the learning-rate and weight-decay laws."""

from lightning_rank.functional.compose import compose_linear
from lightning_rank.functional.learning_rate import inverse_depth
from lightning_rank.functional.moments import (
    Moments,
    merge_moments,
    principal_deviations,
    principal_directions,
    row_moments,
)
from lightning_rank.functional.rank import (
    VARIANCE_RTOL,
    effective_rank,
    numerical_rank,
    participation_ratio,
    spectral_gap,
    stable_rank,
)
from lightning_rank.functional.spectrum import condition_number, directions_for_variance, power_law_exponent
from lightning_rank.functional.uncentred import rankme, uncentred_deviations
from lightning_rank.functional.weight_decay import variance_cutoff, weight_decay_for_variance_cutoff

__all__ = [
    "VARIANCE_RTOL",
    "Moments",
    "compose_linear",
    "condition_number",
    "directions_for_variance",
    "effective_rank",
    "inverse_depth",
    "merge_moments",
    "numerical_rank",
    "participation_ratio",
    "power_law_exponent",
    "principal_deviations",
    "principal_directions",
    "rankme",
    "row_moments",
    "spectral_gap",
    "stable_rank",
    "uncentred_deviations",
    "variance_cutoff",
    "weight_decay_for_variance_cutoff",
]
