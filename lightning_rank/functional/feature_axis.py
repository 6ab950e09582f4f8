"""Which axis of a latent tensor holds the features."""

from torch import Tensor

_IMAGE_NDIM = 4


def resolve_feature_axis(ndim: int, feature_axis: int | None) -> int:
    """Non-negative index of the feature axis of a tensor with ``ndim`` axes.

    Args:
        ndim: Number of axes of the tensor.
        feature_axis: The axis, negative counted from the end; ``None`` follows the convention of torch's layers:
            axis 1 of image-shaped latents ``(B, dim, H, W)``, the last axis of ``(B, dim)`` and ``(B, T, dim)``.

    Raises:
        ValueError: The tensor has no such axis.

    Example:
        >>> resolve_feature_axis(4, None), resolve_feature_axis(3, None), resolve_feature_axis(4, -1)
        (1, 2, 3)
    """
    if feature_axis is None:
        feature_axis = 1 if ndim == _IMAGE_NDIM else -1
    if not -ndim <= feature_axis < ndim:
        raise ValueError(f"feature_axis: expected an axis of a tensor with {ndim} axes, got {feature_axis}")
    return feature_axis % ndim


def as_rows(latents: Tensor, feature_axis: int | None) -> Tensor:
    """Every position of ``latents`` as a row: shape ``(rows, dim)``.

    Args:
        latents: Tensor with ``dim`` features along ``feature_axis``; all other axes count as rows.
        feature_axis: As in :func:`resolve_feature_axis`.

    Example:
        >>> import torch
        >>> as_rows(torch.zeros(2, 8, 3, 3), None).shape
        torch.Size([18, 8])
    """
    axis = resolve_feature_axis(latents.ndim, feature_axis)
    return latents.movedim(axis, -1).reshape(-1, latents.shape[axis])
