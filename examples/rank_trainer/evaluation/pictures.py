"""Grids of images."""

from pathlib import Path

import torch
from torch import Tensor
from torchvision.utils import save_image


def save_grid(rows: list[Tensor], path: Path) -> None:
    """A PNG of some rows of images.

    Args:
        rows: Each ``(columns, C, H, W)``; what is beyond [0, 1] is cut off.
        path: Where to. Small images are enlarged by whole factors, without smoothing.
    """
    images = torch.cat(rows).clamp(0, 1)
    factor = max(1, 48 // images.shape[-1])
    images = images.repeat_interleave(factor, -1).repeat_interleave(factor, -2)
    save_image(images, path, nrow=len(rows[0]), padding=2, pad_value=1.0)
