"""State dicts that were saved without the bottleneck, or with it in another place."""

import functools
from typing import Any

from torch import nn

from lightning_rank.insertion._hooks import CHILD
from lightning_rank.nn._submodules import plain_name
from lightning_rank.nn.linear_bottleneck import LinearBottleneck


class _MissingWeight(str):
    """A missing key that says, in the error of a strict load, what can be done about it."""

    def __format__(self, spec: str) -> str:
        return (
            f"{self!s} (saved without the linear bottleneck? load with strict=False, or attach it with "
            "allow_missing=True, to keep the weights that it has)"
        )


def load_when_missing(bottleneck: LinearBottleneck, allowed: bool) -> None:
    """Have the bottleneck keep its weights where a state dict has none: without a word if ``allowed``."""
    hook = _keep_weights_if_missing if allowed else _name_the_ways
    bottleneck.register_load_state_dict_pre_hook(hook)


def load_old_layout(module: nn.Module, name: str) -> None:
    """Have a module load what version 0.1 saved, where the bottleneck now called ``name`` was a child of the root."""
    module.register_load_state_dict_pre_hook(functools.partial(_move_to_new_place, name=name))


def moved_to_new_place(module: nn.Module, state_dict: dict[str, Any], name: str, prefix: str = "") -> dict[str, Any]:
    """The state dict with the bottleneck of version 0.1 under ``name``, its place in ``module``; order kept."""
    old = f"{prefix}{CHILD}."
    places = [full for full, _ in module.named_modules() if plain_name(full) == name]
    if CHILD in module._modules or not places or not any(key.startswith(old) for key in state_dict):
        return state_dict
    new = f"{prefix}{places[0]}."
    return {new + key.removeprefix(old) if key.startswith(old) else key: value for key, value in state_dict.items()}


def _move_to_new_place(module: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any, name: str) -> None:
    moved = moved_to_new_place(module, state_dict, name, prefix)
    if moved is not state_dict:
        state_dict.clear()
        state_dict.update(moved)


def _keep_weights_if_missing(module: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any) -> list[str]:
    own = module.state_dict(prefix=prefix)
    if any(key.startswith(prefix) for key in state_dict):
        return []
    state_dict.update(own)
    return list(own)


def _name_the_ways(module: nn.Module, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
    _, _, missing_keys, *_ = rest
    first, *others = _keep_weights_if_missing(module, state_dict, prefix) or [None]
    missing_keys += [] if first is None else [_MissingWeight(first), *others]
