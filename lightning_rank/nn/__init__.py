"""Modules."""

from lightning_rank.nn.linear_bottleneck import LinearBottleneck

__all__ = ["LinearBottleneck"]
