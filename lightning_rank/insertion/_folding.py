"""A linear map made part of the linear layer or convolution behind it or in front of it."""

from __future__ import annotations

from typing import TypeGuard

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from lightning_rank.insertion._hooks import does_what_its_class_does

Foldable = nn.Linear | _ConvNd

_KINDS = {nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d}


def is_foldable(layer: nn.Module) -> TypeGuard[Foldable]:
    """Whether it is a plain linear layer, or a convolution of any dimension that mixes all channels.

    Plain is one whose weight is its own, which pruning, say, computes from others.
    """
    return (
        type(layer) in _KINDS
        and getattr(layer, "groups", 1) == 1
        and "weight" in layer._parameters
        and does_what_its_class_does(layer)
    )


def composed_behind(layer: Foldable, matrix: Tensor, offset: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of the layer that does what the map ``z -> matrix z + offset`` and then ``layer`` do.

    Args:
        layer: A layer of :func:`is_foldable`; with an offset, linear or with kernels of a single entry.
        matrix: Shape ``(in, rank)``.
        offset: Shape ``(in,)``; ``None`` for none.

    Returns:
        Both float64 on the CPU; the bias is ``None`` if there is none.
    """
    weight, axis = _wide(layer.weight), 0 if _is_transposed(layer) else 1
    bias = None if layer.bias is None else _wide(layer.bias)
    if offset is not None:
        added = weight.movedim(axis, -1).reshape(-1, len(offset)) @ _wide(offset)
        bias = added if bias is None else bias + added
    return (weight.movedim(axis, -1) @ _wide(matrix)).movedim(-1, axis), bias


def composed_in_front(layer: Foldable, matrix: Tensor) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of the layer that does what ``layer`` and then the map ``z -> matrix z`` do.

    Args:
        layer: A layer of :func:`is_foldable`.
        matrix: Shape ``(dim, out)``.

    Returns:
        Both float64 on the CPU; the bias is ``None`` if there is none.
    """
    matrix, axis = _wide(matrix), 1 if _is_transposed(layer) else 0
    bias = None if layer.bias is None else matrix @ _wide(layer.bias)
    return (_wide(layer.weight).movedim(axis, -1) @ matrix.T).movedim(-1, axis), bias


def set_parameters(layer: Foldable, weight: Tensor, bias: Tensor | None) -> None:
    """Give a layer that weight, and that bias if there is one."""
    with torch.no_grad():
        layer.weight.copy_(weight.reshape(layer.weight.shape))
        if bias is not None:
            assert layer.bias is not None
            layer.bias.copy_(bias)


def _is_transposed(layer: Foldable) -> bool:
    return isinstance(layer, _ConvNd) and layer.transposed


def _wide(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", torch.float64)
