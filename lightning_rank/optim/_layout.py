"""The order of param groups: the user's as they were, and behind them the linear ones, each with its partner."""

from collections.abc import Callable, Sequence
from itertools import count
from typing import Any

from torch import Tensor

from lightning_rank.optim.param_groups import MULTIPLIER_KEY

#: Key of a linear group that tells the index of the user's group that it was split from.
PARTNER_KEY = "depth_partner"

#: Keys that a linear group has from its partner times the multiplier.
SCALED = {"lr", "initial_lr"}

Groups = list[dict[str, Any]]


def arranged(groups: Sequence[dict[str, Any]]) -> tuple[Groups, Groups]:
    """The user's groups, and the linear ones with their partners, which those of 0.1 stand right behind."""
    users: Groups = []
    linear: Groups = []
    for group in groups:
        if MULTIPLIER_KEY in group:
            group.setdefault(PARTNER_KEY, len(users) - 1)
            linear.append(group)
        else:
            users.append(group)
    return users, sorted(linear, key=lambda group: group[PARTNER_KEY])


def in_layout_of(groups: Groups, state_dict: dict[str, Any], place: Callable[[Any], int]) -> dict[str, Any] | None:
    """A state dict in the layout of the ``groups`` that are to load it, each parameter keeping its state.

    It may have been saved split, also by 0.1 or with bottlenecks of another depth, unsplit, or before there were any:
    layers that both have keep their state, others start without.

    Args:
        groups: Those of the optimizer, split.
        state_dict: What is to be loaded.
        place: The place of a parameter in the order in which the user gave them.

    Returns:
        A new state dict, or None for one that does not fit, of which torch says so.
    """
    users, linear = arranged(groups)
    saved, saved_linear = arranged([dict(group) for group in state_dict["param_groups"]])
    if len(saved) != len(users):
        return None
    fitted: Groups = []
    fitted_linear: Groups = []
    fresh = count(-1, -1)  # keys of parameters without a state; saved ones are numbers from zero, or names
    for position, (user, group) in enumerate(zip(users, saved, strict=True)):
        parts = [part for part in linear if part[PARTNER_KEY] == position]
        saved_parts = [part for part in saved_linear if part[PARTNER_KEY] == position]
        given = sorted((p for part in (user, *parts) for p in part["params"]), key=place)
        if not saved_parts and len(group["params"]) == len(given):
            keys = dict(zip(map(id, given), group["params"], strict=True))
        elif len(group["params"]) == len(user["params"]):
            keys = dict(zip(map(id, user["params"]), group["params"], strict=True))
        else:
            return None
        for part, saved_part in zip(parts, saved_parts, strict=False):
            keys |= zip(map(id, part["params"]), saved_part["params"], strict=False)
        keys = {id(parameter): next(fresh) for parameter in given} | keys
        fitted.append(_as(user, group, keys))
        for index, part in enumerate(parts):
            scaled = group | {key: times(group[key], part[MULTIPLIER_KEY]) for key in SCALED & group.keys()}
            fitted_linear.append(_as(part, saved_parts[index] if index < len(saved_parts) else scaled, keys))
    gone = _keys(state_dict["param_groups"]) - _keys(fitted + fitted_linear)
    state = {key: value for key, value in state_dict["state"].items() if key not in gone}
    return {**state_dict, "state": state, "param_groups": fitted + fitted_linear}


def _keys(groups: Groups) -> set[Any]:
    return {key for group in groups for key in group["params"]}


def times(lr: float | Tensor | None, multiplier: float) -> Any:
    """A learning rate, scaled; an optimizer that sets its own has none."""
    return None if lr is None else lr * multiplier


def _as(group: dict[str, Any], saved: dict[str, Any], keys: dict[int, Any]) -> dict[str, Any]:
    """What was saved of a group, under the names that it has now."""
    names = {key: group[key] for key in ("name", "param_names", MULTIPLIER_KEY, PARTNER_KEY) if key in group}
    return saved | names | {"params": [keys[id(parameter)] for parameter in group["params"]]}
