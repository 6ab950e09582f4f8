"""Latents along the principal directions and between two inputs, and the grid that shows what is decoded from them."""

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_rank.functional import Moments, principal_directions

__all__ = ["image_grid", "interpolate_latents", "traverse_principal_directions"]

_SPAN = 2.0  # standard deviations each way: 95 % of a Gaussian
_SMALLEST_TILE = 64  # pixels: images of 8x8 are enlarged until something can be seen
_SEPARATOR = 3  # pixels
_GRAY = 0.5  # of the separators: neither the black of digits nor the white of paper


def traverse_principal_directions(
    moments: Moments, n_directions: int, steps: int, *, center: Tensor | None = None
) -> Tensor:
    r"""Latents along the leading principal directions, from -2 to +2 standard deviations.

    .. math:: z_{k,j} = c + t_j \sigma_k v_k, \qquad t_j = -2, \dots, 2

    Args:
        moments: Of the latents, as made by :func:`~lightning_rank.functional.row_moments`.
        n_directions: How many directions, in falling variance.
        steps: How many latents along each, evenly spaced; of an odd number the middle one is the center itself.
        center: Latent that they pass through, shape ``(dim,)``; ``None`` for the mean.

    Returns:
        Shape ``(n_directions, steps, dim)``, float64. Along a direction that the latents do not use, all are equal.

    Raises:
        ValueError: ``n_directions`` not in [1, dim], ``steps`` < 2, ``center`` of another shape, or moments of no rows.

    Example:
        >>> from lightning_rank.functional import row_moments
        >>> moments = row_moments(torch.tensor([[7.0, 1.0], [7.0, -1.0]]))
        >>> traverse_principal_directions(moments, n_directions=1, steps=3).tolist()
        [[[7.0, -2.0], [7.0, 0.0], [7.0, 2.0]]]
    """
    dim = len(moments.mean)
    if not 1 <= n_directions <= dim:
        raise ValueError(f"n_directions: expected 1 to {dim}, the width of the latents, got {n_directions}")
    _check_steps(steps)
    if moments.n == 0:
        raise ValueError("moments: expected those of one row or more, got none")
    if center is None:
        center = moments.mean
    elif center.shape != (dim,):
        raise ValueError(f"center: expected shape ({dim},), got {tuple(center.shape)}")
    deviations, directions = principal_directions(moments)
    axes = (deviations * directions).T[:n_directions, None, :]
    return center.to(axes) + torch.linspace(-_SPAN, _SPAN, steps).to(axes)[:, None] * axes


def interpolate_latents(start: Tensor, end: Tensor, steps: int) -> Tensor:
    r"""Latents on the straight line from one to another, both ends included.

    .. math:: z_j = (1 - t_j) z_0 + t_j z_1, \qquad t_j = 0, \dots, 1

    Decoded, they lead from one input to the other along the latent. The line leaves no affine subspace that holds both
    ends, so latents of low rank stay so.

    Args:
        start: Latent of any shape.
        end: Latent of the same shape.
        steps: How many latents, evenly spaced.

    Returns:
        Shape ``(steps, *start.shape)``, in the dtype of the latents.

    Raises:
        ValueError: The shapes differ, or ``steps`` < 2.

    Example:
        >>> interpolate_latents(torch.zeros(2), torch.tensor([4.0, -8.0]), steps=3).tolist()
        [[0.0, 0.0], [2.0, -4.0], [4.0, -8.0]]
    """
    _check_steps(steps)
    if start.shape != end.shape:
        raise ValueError(f"end: expected the shape of start, {tuple(start.shape)}, got {tuple(end.shape)}")
    weights = torch.linspace(0, 1, steps).to(start).reshape(-1, *[1] * start.ndim)
    return torch.lerp(start[None], end[None], weights)


def image_grid(images: Tensor) -> Tensor:
    """One picture of rows of images, separated by gray lines; small images are enlarged by a whole factor.

    Args:
        images: Real floating-point tensor, shape ``(rows, columns, C, H, W)``, in [0, 1]. Values outside are clamped,
            NaN becomes 0.

    Returns:
        uint8, shape ``(C, height, width)``, each image at least 64 pixels on its shorter side.

    Raises:
        ValueError: There are not five axes.

    Example:
        >>> image_grid(torch.zeros(2, 5, 1, 28, 28)).shape  # 2 * (84 + 3) + 3 by 5 * (84 + 3) + 3
        torch.Size([1, 177, 438])
    """
    if images.ndim != 5:
        raise ValueError(f"images: expected shape (rows, columns, C, H, W), got {tuple(images.shape)}")
    rows, columns, channels, height, width = images.shape
    factor = max(1, -(-_SMALLEST_TILE // min(height, width)))
    tiles = images.detach().float().nan_to_num(0, posinf=1, neginf=0).clamp(0, 1)
    tiles = tiles.repeat_interleave(factor, -2).repeat_interleave(factor, -1)
    # A line below and to the right of each tile, and one above and to the left of all.
    tiles = F.pad(tiles, (0, _SEPARATOR, 0, _SEPARATOR), value=_GRAY)
    grid = tiles.permute(2, 0, 3, 1, 4).reshape(channels, rows * tiles.shape[-2], columns * tiles.shape[-1])
    return (255 * F.pad(grid, (_SEPARATOR, 0, _SEPARATOR, 0), value=_GRAY)).round().to(torch.uint8)


def _check_steps(steps: int) -> None:
    if steps < 2:
        raise ValueError(f"steps: expected 2 or more, got {steps}")
