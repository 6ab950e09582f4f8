"""The example trainer: autoencoders over methods, depths, gains and seeds, and what came of them."""

from rank_trainer.runs import METHODS, Run
from rank_trainer.sweep import RankSweep

__all__ = ["METHODS", "RankSweep", "Run"]
