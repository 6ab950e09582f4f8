"""Low-rank latents for Lightning autoencoders, and the rank as a curve.

Implements "Implicit Greedy Rank Learning in Autoencoders via Overparameterized Linear Networks" (Sun et al. 2021,
arXiv 2107.01301).
"""

from lightning_rank.callbacks import DepthScaledLR, EffectiveRankMonitor, LatentTraversal
from lightning_rank.compression import load_truncated, truncate_linear_bottleneck
from lightning_rank.insertion import attach_linear_bottleneck, collapse_linear_bottleneck, merge_linear_bottleneck
from lightning_rank.mixin import LinearBottleneckMixin
from lightning_rank.nn import LinearBottleneck
from lightning_rank.optim import depth_scaled_param_groups

__version__ = "0.2.0.dev0"

__all__ = [
    "DepthScaledLR",
    "EffectiveRankMonitor",
    "LatentTraversal",
    "LinearBottleneck",
    "LinearBottleneckMixin",
    "attach_linear_bottleneck",
    "collapse_linear_bottleneck",
    "depth_scaled_param_groups",
    "load_truncated",
    "merge_linear_bottleneck",
    "truncate_linear_bottleneck",
]
