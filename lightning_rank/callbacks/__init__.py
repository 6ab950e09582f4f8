"""Lightning callbacks."""

from lightning_rank.callbacks.depth_scaled_lr import DepthScaledLR
from lightning_rank.callbacks.effective_rank_monitor import EffectiveRankMonitor

__all__ = ["DepthScaledLR", "EffectiveRankMonitor"]
