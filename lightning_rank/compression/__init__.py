"""From a rank to a smaller model."""

from lightning_rank.compression.by_rank import measure_by_rank
from lightning_rank.compression.loading import load_truncated
from lightning_rank.compression.report import Truncation
from lightning_rank.compression.truncation import truncate_linear_bottleneck

__all__ = ["Truncation", "load_truncated", "measure_by_rank", "truncate_linear_bottleneck"]
