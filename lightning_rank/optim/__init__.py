"""Param groups for a learning rate scaled by depth."""

from lightning_rank.optim.param_groups import LinearGroup, depth_scaled_param_groups, linear_groups
from lightning_rank.optim.response import response_to_learning_rate

__all__ = ["LinearGroup", "depth_scaled_param_groups", "linear_groups", "response_to_learning_rate"]
