"""Which axis of a latent tensor holds the features."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class LayerFeatures(NamedTuple):
    """What a layer beside a tensor says of the tensor's features.

    Attributes:
        axis: Where such a layer has them: 1 (convolutions and batch norms) or -1; ``None`` if the layer may be followed
            by something that moves them.
        dim: How many there are; ``None`` if the layer does not say.
        ndim: Number of axes that such a layer works on; ``None`` if it works on several.
        usual: The axis that the layer itself works on, where ``axis`` is ``None``.
        covered: Whether something unknown may come behind it, so that it can cast doubt on an axis only.
    """

    axis: int | None
    dim: int | None = None
    ndim: int | None = None
    usual: int | None = None
    covered: bool = False


def resolve_feature_axis(
    shape: Sequence[int], feature_axis: int | None, dim: int | None = None, beside: LayerFeatures | None = None
) -> int:
    """Non-negative index of the feature axis of a tensor.

    Args:
        shape: Of the tensor.
        feature_axis: The axis, negative counted from the end. ``None`` takes, of axis 1 and the last one, the one that
            is ``dim`` wide; where both are, or where the layer beside has as many features as it says, the one that
            the layer works on.
        dim: Number of features; ``None`` if it is not known.
        beside: What the layer beside says.

    Raises:
        ValueError: The tensor has no such axis; or ``None``, and nothing decides between two axes or there is no batch.

    Example:
        >>> resolve_feature_axis((2, 8, 3, 3), None, dim=8), resolve_feature_axis((2, 3, 3, 8), None, dim=8)
        (1, 3)
        >>> resolve_feature_axis((2, 8, 8), None, dim=8, beside=LayerFeatures(axis=1))
        1
    """
    ndim = len(shape)
    if feature_axis is not None:
        if not -ndim <= feature_axis < ndim:
            raise ValueError(f"feature_axis: expected an axis of a tensor with {ndim} axes, got {feature_axis}")
        return feature_axis % ndim
    last = ndim - 1
    if beside is not None and beside.axis == 1 and beside.ndim == ndim + 1:
        raise ValueError(
            f"feature_axis: expected a batch of {beside.ndim} axes from the layer beside, got shape {tuple(shape)}; "
            "add an axis for the batch (x[None]), or pass feature_axis=0"
        )
    if last < 2:
        return max(last, 0)
    known = None if beside is None or beside.ndim not in (None, ndim) else beside.axis
    if dim is not None and beside is not None and known is not None and shape[known] == beside.dim != dim:
        return known % ndim  # which is not as wide as expected, as whoever knows the width will say
    width = dim
    if width is None and beside is not None:
        width = beside.dim
    fitting = [axis for axis in (1, last) if shape[axis] == width]
    covered = dim is None and beside is not None and beside.covered
    # A width that a layer was taken to have is believed on the axis that such a layer works on only.
    doubtful = dim is None and beside is not None and (beside.usual == -1 or covered) and fitting == [1]
    if len(fitting) == 1 and not doubtful and not covered:
        return fitting[0]
    if beside is not None and known is not None:
        decides = beside.dim in (None, width) if fitting else width is None
        if decides:
            return known % ndim
    if not fitting and dim is not None:
        return last  # which is not as wide as expected, as whoever knows the width will say
    if last == 2 and dim is None and (beside is None or covered) and not doubtful:
        return last  # of (B, T, dim)
    told = "it is not known how many features there are"
    if len(fitting) == 2:
        told = f"both are {width} wide"
    elif doubtful:
        layer = "behind which something unknown may come" if covered else "that works on the last one"
        told = f"axis 1 is {width} wide, and so is a layer {layer}"
    raise ValueError(
        f"feature_axis: expected to see which axis of shape {tuple(shape)} holds the features, but it may be axis 1 or "
        f"axis {last}: {told}, and no layer beside decides; pass feature_axis=1 or feature_axis=-1"
    )


def feature_axis_of(
    latents: Tensor, feature_axis: int | None, dim: int | None = None, beside: LayerFeatures | None = None
) -> int:
    """The same of a tensor, which may be nested: a transformer that is evaluated nests what was padded."""
    if latents.is_nested and latents.layout == torch.strided:
        return resolve_feature_axis(shape_of(latents), -1 if feature_axis is None else feature_axis)
    return resolve_feature_axis(latents.shape, feature_axis, dim, beside)


def shape_of(latents: Tensor) -> tuple[int, ...]:
    """Its shape, with -1 where sequences of a nested tensor differ in length."""
    nested = latents.is_nested and latents.layout == torch.strided
    return (*[-1] * (latents.ndim - 1), latents.size(-1)) if nested else tuple(latents.shape)


def as_rows(latents: Tensor, axis: int) -> Tensor:
    """Every position of ``latents`` as a row: shape ``(rows, dim)``.

    Args:
        latents: Tensor with ``dim`` features along ``axis``; all other axes count as rows.
        axis: As given by :func:`resolve_feature_axis`.

    Example:
        >>> import torch
        >>> as_rows(torch.zeros(2, 8, 3, 3), 1).shape
        torch.Size([18, 8])
    """
    if latents.is_nested:
        return torch.cat([part.reshape(-1, part.shape[-1]) for part in latents.unbind()])
    return latents.movedim(axis, -1).reshape(-1, latents.shape[axis])


def moved_back(features_last: Tensor, axis: int, like: Tensor) -> Tensor:
    """Move the features from the last axis to ``axis``, laid out in memory as ``like`` is, channels last or not.

    What is drawn like a tensor depends on its layout, and the layers behind are faster with the one they are used to.
    """
    output = features_last.movedim(-1, axis)
    return output.contiguous() if like.is_contiguous() else output
