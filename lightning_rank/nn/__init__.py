"""Modules."""

from lightning_rank.nn.linear_bottleneck import LinearBottleneck
from lightning_rank.nn.truncated_bottleneck import TruncatedBottleneck

__all__ = ["LinearBottleneck", "TruncatedBottleneck"]
