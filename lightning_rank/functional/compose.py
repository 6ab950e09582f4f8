"""The product of a stack of linear maps."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor


def compose_linear(weights: Sequence[Tensor]) -> Tensor:
    r"""The matrix that a stack of bias-free linear layers applies.

    .. math:: W = W_N \cdots W_2 W_1

    The product is formed in float32 at least, whatever autocast says, and cast once, so that its error does not grow
    with the depth.

    Args:
        weights: ``W_1, ..., W_N`` in the order in which they are applied; ``W_k`` has shape ``(out_k, in_k)`` with
            ``in_k = out_{k-1}``.

    Returns:
        A new tensor of shape ``(out_N, in_1)``, in the dtype of the weights. Differentiable to any order.

    Raises:
        TypeError: A weight is not a floating-point or complex tensor.
        ValueError: There are no weights, or their shapes do not chain.

    Example:
        >>> first, second = torch.eye(3), 2 * torch.eye(3)
        >>> torch.equal(compose_linear([first, second]), 2 * torch.eye(3))
        True
    """
    if len(weights) == 0:
        raise ValueError("weights: expected at least one matrix, got none")
    for index, weight in enumerate(weights):
        if not isinstance(weight, Tensor) or not (weight.is_floating_point() or weight.is_complex()):
            got = weight.dtype if isinstance(weight, Tensor) else type(weight).__name__
            raise TypeError(f"weights[{index}]: expected a floating-point tensor, got {got}")
        if weight.ndim != 2 or (index > 0 and weight.shape[1] != weights[index - 1].shape[0]):
            width = "in" if index == 0 else weights[index - 1].shape[0]
            raise ValueError(f"weights[{index}]: expected shape (out, {width}), got {tuple(weight.shape)}")
    dtype = weights[0].dtype
    with without_autocast(weights[0].device.type):
        # A copy: the product of a single matrix must not change with that matrix either.
        product = weights[0].to(torch.promote_types(dtype, torch.float32), copy=len(weights) == 1)
        for weight in weights[1:]:
            product = weight.to(product.dtype) @ product
    return product.to(dtype)


def without_autocast(device_type: str) -> AbstractContextManager[Any]:
    """Switch autocast off; the meta device has none."""
    if device_type == "meta":  # torch.amp.is_autocast_available cannot be compiled by torch 2.8
        return nullcontext()
    return torch.autocast(device_type, enabled=False)
