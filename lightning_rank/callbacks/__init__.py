"""Lightning callbacks."""

from lightning_rank.callbacks.depth_scaled_lr import DepthScaledLR
from lightning_rank.callbacks.effective_rank_monitor import EffectiveRankMonitor
from lightning_rank.callbacks.latent_traversal import LatentTraversal

__all__ = ["DepthScaledLR", "EffectiveRankMonitor", "LatentTraversal"]
