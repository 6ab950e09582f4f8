"""Making a linear layer take in the linear map in front of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeGuard, cast

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from lightning_rank.compression._bottleneck import replace_submodule
from lightning_rank.compression._latents import random_state_kept
from lightning_rank.insertion._folding import Foldable, composed_behind, is_foldable, set_parameters
from lightning_rank.insertion._hooks import carry_over
from lightning_rank.nn._submodules import plain_name
from lightning_rank.nn.truncated_bottleneck import TruncatedBottleneck

NO_TAKER = "found no linear layer or 1x1 convolution that alone takes the latents"


def fold_decode(
    module: nn.Module, truncated: TruncatedBottleneck, run: Callable[[], tuple[Tensor, Any]]
) -> tuple[str, Foldable, Foldable] | str:
    """Fold the second map of ``truncated`` into the layer behind it, in place, if there is one.

    That layer is the only one that is given the very tensor that comes out of ``truncated``; whether anything else
    uses that tensor shows when ``run`` gives the same result afterwards, from the same random state.

    Args:
        module: Where to look for the layer.
        truncated: A bottleneck with both of its maps.
        run: Gives the latents, or the code if ``truncated`` is folded, and what is made of them.

    Returns:
        The name of the layer, the layer, and the thinner one that took its place. Or what stands against it; then
        nothing was changed.
    """
    decode = truncated.decode
    assert decode is not None
    try:
        with random_state_kept(module):
            expected, takers = _run_recording(module, run)
    except (RuntimeError, TypeError):  # what takes the latents takes more than those
        return NO_TAKER
    if len(takers) != 1:
        return NO_TAKER
    ((name, layer),) = takers.items()
    if not can_take(layer):
        return NO_TAKER
    with random_state_kept(module):  # its initialization draws, too
        thinner = thinner_layer(layer, decode.in_features)
    set_parameters(thinner, *composed_behind(layer, decode.weight, decode.bias))
    carry_over(layer, thinner)
    replace_submodule(module, name, thinner)
    truncated.decode = None
    try:
        with random_state_kept(module):
            made = run()[1]
        _check_same(made, expected, torch.finfo(layer.weight.dtype).eps ** 0.5)
    except BaseException as error:
        truncated.decode = decode
        replace_submodule(module, name, layer)
        if isinstance(error, AssertionError | RuntimeError | TypeError | ValueError):
            return f"with the second map in {plain_name(name)!r}, which takes the latents, the outputs are others"
        raise
    return name, layer, thinner


def _run_recording(module: nn.Module, run: Callable[[], tuple[Tensor, Any]]) -> tuple[Any, dict[str, nn.Module]]:
    """What was made of the latents, and the linear and convolutional layers that were given them."""
    calls: list[tuple[str, nn.Module, Any]] = []

    def record(name: str) -> Callable[[nn.Module, Any], None]:
        return lambda layer, args: calls.append((name, layer, args[0])) if args else None

    kinds = nn.Linear, nn.modules.conv._ConvNd
    layers = [(name, layer) for name, layer in module.named_modules() if isinstance(layer, kinds)]
    hooks = [layer.register_forward_pre_hook(record(name)) for name, layer in layers]
    try:
        latents, made = run()
    finally:
        for hook in hooks:
            hook.remove()
    return made, {name: layer for name, layer, input in calls if input is latents}


def _check_same(made: Any, expected: Any, tolerance: float) -> None:
    """Refuse what differs by more than that of the largest entry."""
    for one, other in zip(tree_leaves(made), tree_leaves(expected), strict=True):
        largest = 0.0
        if isinstance(other, Tensor) and other.is_floating_point() and other.numel() > 0:
            largest = float(other.detach().abs().nan_to_num(0, 0, 0).max())
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance * largest, equal_nan=True)


def can_take(layer: nn.Module) -> TypeGuard[Foldable]:
    """Whether an offset goes into it, too: a plain linear layer, or a 1x1 convolution that mixes all channels."""
    if isinstance(layer, nn.modules.conv._ConvNd):
        return is_foldable(layer) and not layer.transposed and max(layer.weight.shape[2:]) == 1
    return is_foldable(layer)


def thinner_layer(layer: Foldable, rank: int) -> Foldable:
    """A layer like ``layer`` for inputs ``rank`` wide, with a bias."""
    out, options = len(layer.weight), {"device": layer.weight.device, "dtype": layer.weight.dtype}
    if isinstance(layer, nn.Linear):
        thinner: Foldable = nn.Linear(rank, out, **options)
    else:
        kind = cast("type[nn.Conv2d]", type(layer))
        thinner = kind(rank, out, 1, stride=cast(Any, layer.stride), **options)
    return thinner.requires_grad_(layer.weight.requires_grad)
