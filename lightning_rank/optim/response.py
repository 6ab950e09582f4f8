"""Whether an optimizer's update follows the learning rate of a param group: measured, not looked up."""

import math
import warnings
from collections import OrderedDict, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

_STEPS = 8  # more than optimizers need that rectify their first ones
_LR = 1e-3  # where the optimizer's own is zero


def response_to_learning_rate(optimizer: Any, group: dict[str, Any]) -> float | None:
    r"""How far half the learning rate moves the parameters of one group, over how far the whole of it does.

    .. math:: \|\Delta(\eta / 2)\| / \|\Delta(\eta)\|

    It is one half where the update is proportional to the learning rate (SGD, Adam, Muon), and 1 where the optimizer
    sets a rate of its own. It is measured over a few steps of copies that stand for the smallest parameter of every
    group and of all that the optimizer keeps: the parameters, their state and the optimizer are as they were before.

    Args:
        optimizer: An optimizer that wraps no other.
        group: The one of its param groups whose learning rate is halved; the others keep theirs.

    Returns:
        The ratio; nan where nothing moved; None where the optimizer does not step without more than gradients and a
        closure, or cannot be copied.

    Raises:
        ValueError: The optimizer steps while its groups have the learning rates they have at first, and fails when this
            group has another.

    Example:
        >>> optimizer = torch.optim.Adam(nn.Linear(4, 4).parameters(), lr=0.1)
        >>> round(response_to_learning_rate(optimizer, optimizer.param_groups[0]), 3)
        0.5
    """
    try:
        whole = _displacement(optimizer, group, 1.0)
    except Exception:  # it wants more than gradients, or cannot be copied: nothing can be said
        return None
    try:
        half = _displacement(optimizer, group, 0.5)
    except Exception as error:
        raise ValueError(f"{type(optimizer).__name__} takes one learning rate for all param groups: {error}") from error
    return half / whole if whole > 0 else math.nan


def _displacement(optimizer: Any, group: dict[str, Any], factor: float) -> float:
    watched: list[nn.Parameter] = []
    groups, state, copies = [], defaultdict(dict), {id(optimizer): optimizer}
    for known in optimizer.param_groups:
        # A warm-up may begin at zero, where there would be nothing to measure; decay is not what is asked for.
        trial = deepcopy({key: value for key, value in known.items() if key != "params"})
        trial |= {"params": [], "lr": _rate(optimizer, factor if known is group else 1.0)}
        trial |= {"weight_decay": 0.0} if "weight_decay" in known else {}
        smallest = min(known["params"], key=lambda p: p.numel(), default=None)
        for parameter in known["params"]:
            # What the optimizer keeps of others, outside of its groups, is of no size.
            stands = parameter.detach().clone() if parameter is smallest else parameter.new_empty(0)
            copies[id(parameter)] = stand_in = nn.Parameter(stands)
            if parameter is smallest:
                trial["params"].append(stand_in)
                watched += [stand_in] if known is group else []
                if parameter in optimizer.state:
                    state[stand_in] = deepcopy(optimizer.state[parameter])
        groups.append(trial)
    start = watched[0].detach().clone()
    # Both trials begin with the same random state, which is that of afterwards, too.
    devices = [start.device] if start.is_cuda else []
    with _in_place_of(optimizer, groups, state, copies), torch.random.fork_rng(devices), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it will say it again when the steps are meant
        for step in range(_STEPS):
            for stand_in in (stand_in for trial in groups for stand_in in trial["params"]):
                stand_in.grad = torch.ones_like(stand_in).cumsum(-1)
            _step(optimizer)
            if step == 0:  # which may put the parameters where the optimizer wants them, at any learning rate
                start = watched[0].detach().clone()
    return float((watched[0].detach() - start).norm())


def _step(optimizer: Any) -> None:
    take_step = type(optimizer).step
    if getattr(take_step, "hooked", False):  # past the hooks of all optimizers
        take_step = take_step.__wrapped__
    try:
        take_step(optimizer)
    except TypeError:  # it wants a closure
        take_step(optimizer, lambda: torch.zeros(()))


def _rate(optimizer: Any, factor: float) -> float | Tensor | None:
    """A learning rate for the trial, of the kind that the optimizer has; without one it stays without."""
    lr = optimizer.defaults.get("lr")
    return None if lr is None else (lr if lr > 0 else lr + _LR) * factor


@contextmanager
def _in_place_of(optimizer: Any, groups: list[dict[str, Any]], state: Any, copies: dict[int, Any]) -> Iterator[None]:
    """Let the optimizer have other groups, another state and copies of all else for a moment, and no hooks."""
    attributes = dict(vars(optimizer))
    hooks = {key: OrderedDict() for key in attributes if key.endswith("_hooks")}
    others = {key: value for key, value in attributes.items() if key not in hooks.keys() | {"param_groups", "state"}}
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    gradients = [parameter.grad for parameter in parameters]
    vars(optimizer).update(deepcopy(others, copies), **hooks, param_groups=groups, state=state)
    try:
        if optimizer.param_groups is not groups:
            raise TypeError("a property for param groups")
        for parameter in parameters:
            parameter.grad = None
        yield
    finally:
        vars(optimizer).clear()
        vars(optimizer).update(attributes)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
