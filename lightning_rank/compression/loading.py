"""Weights of a truncated module, into one that is not."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from lightning_rank.compression._bottleneck import find_bottleneck, replace_submodule, take_over
from lightning_rank.compression._folding import can_take, thinner_layer
from lightning_rank.insertion._folding import Foldable
from lightning_rank.insertion._hooks import carry_over
from lightning_rank.insertion._loading import moved_to_new_place
from lightning_rank.nn._submodules import plain_name
from lightning_rank.nn.truncated_bottleneck import TruncatedBottleneck


def load_truncated(module: nn.Module, state_dict: Mapping[str, Tensor]) -> None:
    """Truncate a module as the ``state_dict`` of an equal module was, and load it, in place.

    Of a Lightning checkpoint, give ``torch.load(path)["state_dict"]``.

    Args:
        module: A fresh module, with its linear bottleneck.
        state_dict: That of an equal module after :func:`~lightning_rank.truncate_linear_bottleneck`, folded or not.

    Raises:
        TypeError: ``module`` is not an ``nn.Module``.
        ValueError: It has no linear bottleneck, or ``state_dict`` is not of a truncated module.
        RuntimeError: The ``state_dict`` is of a module that differs in something else, as in ``load_state_dict``.

    Example:
        >>> import torch
        >>> from lightning_rank import LinearBottleneck, truncate_linear_bottleneck
        >>> def new():
        ...     return nn.Sequential(nn.Linear(8, 4), LinearBottleneck(4, depth=2), nn.Linear(4, 8))
        >>> model, other = new(), new()
        >>> truncated = truncate_linear_bottleneck(model, torch.randn(100, 4), rank=2)
        >>> load_truncated(other, model.state_dict())
        >>> torch.equal(model(torch.ones(8)), other(torch.ones(8)))
        True
    """
    name, bottleneck = find_bottleneck(module)
    state_dict = moved_to_new_place(module, dict(state_dict), plain_name(name))
    key = f"{name}.encode.weight"
    if key not in state_dict:
        raise ValueError(f"state_dict: expected that of a truncated module, with {key!r}; got none")
    dim, rank = bottleneck.dim, len(state_dict[key])
    folded = f"{name}.decode.weight" not in state_dict
    like = bottleneck.weight
    replaced: dict[str, nn.Module] = {name: bottleneck}
    with torch.inference_mode(False):  # what is made in it could not be trained
        truncated = TruncatedBottleneck(
            dim, rank, folded=folded, feature_axis=bottleneck.feature_axis, device=like.device, dtype=like.dtype
        )
        take_over(bottleneck, truncated)
        truncated.requires_grad_(bottleneck.depth == 0 or any(p.requires_grad for p in bottleneck.parameters()))
        replace_submodule(module, name, truncated.train(module.training))
        if folded:
            for layer_name, layer in list(module.named_modules()):
                if can_take(layer) and _took(layer_name, layer, dim, rank, state_dict):
                    thinner = thinner_layer(layer, rank).train(layer.training)
                    carry_over(layer, thinner)
                    replace_submodule(module, layer_name, thinner)
                    replaced[layer_name] = layer
        try:
            module.load_state_dict(state_dict)
        except RuntimeError:
            for old_name, old in replaced.items():
                replace_submodule(module, old_name, old)
            raise


def _took(name: str, layer: Foldable, dim: int, rank: int, state_dict: Mapping[str, Tensor]) -> bool:
    """Whether that layer took the second map in, as far as shapes tell."""
    saved = state_dict.get(f"{name}.weight")
    if saved is None or layer.weight.shape[1] != dim or saved.shape[1] != rank:
        return False
    return rank < dim or (layer.bias is None and f"{name}.bias" in state_dict)
