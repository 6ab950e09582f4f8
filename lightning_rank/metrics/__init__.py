"""Metrics of the latents of a whole data split: their spectrum, and ranks read off it."""

from lightning_rank.metrics.latent_spectrum import LatentSpectrum
from lightning_rank.metrics.pooling import RowStatistics
from lightning_rank.metrics.rank import (
    ConditionNumber,
    DirectionsForVariance,
    EffectiveRank,
    NumericalRank,
    ParticipationRatio,
    PowerLawExponent,
    RankMe,
    StableRank,
)
from lightning_rank.metrics.synchronization import synchronize

__all__ = [
    "ConditionNumber",
    "DirectionsForVariance",
    "EffectiveRank",
    "LatentSpectrum",
    "NumericalRank",
    "ParticipationRatio",
    "PowerLawExponent",
    "RankMe",
    "RowStatistics",
    "StableRank",
    "synchronize",
]
