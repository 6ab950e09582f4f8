"""Putting linear bottlenecks into models that have none, and taking them out again."""

from lightning_rank.insertion.attach import attach_linear_bottleneck
from lightning_rank.insertion.collapse import collapse_linear_bottleneck
from lightning_rank.insertion.merge import merge_linear_bottleneck

__all__ = ["attach_linear_bottleneck", "collapse_linear_bottleneck", "merge_linear_bottleneck"]
