"""Param groups for a learning rate scaled by depth."""

from lightning_rank.optim.param_groups import LinearGroup, depth_scaled_param_groups, linear_groups

__all__ = ["LinearGroup", "depth_scaled_param_groups", "linear_groups"]
