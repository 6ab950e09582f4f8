"""Whether an optimizer's update follows the learning rate of a param group: measured, not looked up."""

import warnings
from collections import OrderedDict, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

_STEPS = 8  # more than optimizers need that rectify their first ones


def response_to_learning_rate(optimizer: Any, group: dict[str, Any]) -> float | None:
    r"""How far half the learning rate moves the parameters of one group, over how far the whole of it does.

    .. math:: \|\Delta(\eta / 2)\| / \|\Delta(\eta)\|

    It is one half where the update is proportional to the learning rate (SGD, Adam, Muon), and 1 where the optimizer
    sets a rate of its own. It is measured over a few steps of copies that stand for the smallest parameter of every
    group: the parameters, their state and the optimizer are as they were before.

    Args:
        optimizer: An optimizer that wraps no other.
        group: The one of its param groups whose learning rate is halved; the others keep theirs.

    Returns:
        The ratio; None where nothing moved or where the optimizer does not step without more than gradients.

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
    except Exception:  # it wants a closure, or a call before its first step: nothing can be said
        return None
    try:
        half = _displacement(optimizer, group, 0.5)
    except Exception as error:
        raise ValueError(f"{type(optimizer).__name__} takes one learning rate for all param groups: {error}") from error
    return half / whole if whole > 0 else None


def _displacement(optimizer: Any, group: dict[str, Any], factor: float) -> float:
    stand_ins: dict[int, nn.Parameter] = {}
    groups, state = [], defaultdict(dict)
    for known in optimizer.param_groups:
        # A warm-up may begin at zero, where there would be nothing to measure; decay is not what is asked for.
        trial = deepcopy({key: value for key, value in known.items() if key != "params"})
        trial |= {"params": [], "lr": _rate(optimizer, factor if known is group else 1.0)}
        trial |= {"weight_decay": 0.0} if "weight_decay" in known else {}
        for parameter in sorted(known["params"], key=lambda p: p.numel())[:1]:
            stand_ins[id(known)] = stand_in = nn.Parameter(parameter.detach().clone())
            trial["params"].append(stand_in)
            if parameter in optimizer.state:
                state[stand_in] = deepcopy(optimizer.state[parameter])
        groups.append(trial)
    watched, take_step = stand_ins[id(group)], type(optimizer).step
    if getattr(take_step, "hooked", False):  # past the hooks of all optimizers
        take_step = take_step.__wrapped__
    start = watched.detach().clone()
    # Both trials begin with the same random state, which is that of afterwards, too.
    devices = [watched.device] if watched.is_cuda else []
    with _in_place_of(optimizer, groups, state), torch.random.fork_rng(devices), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it will say it again when the steps are meant
        for step in range(_STEPS):
            for stand_in in stand_ins.values():
                stand_in.grad = torch.ones_like(stand_in).cumsum(-1)
            take_step(optimizer)
            if step == 0:  # which may put the parameters where the optimizer wants them, at any learning rate
                start = watched.detach().clone()
    return float((watched.detach() - start).norm())


def _rate(optimizer: Any, factor: float) -> float | Tensor | None:
    """A learning rate for the trial, of the kind that the optimizer has; without one it stays without."""
    lr = optimizer.defaults.get("lr")
    return None if lr is None else lr * factor


@contextmanager
def _in_place_of(optimizer: Any, groups: list[dict[str, Any]], state: Any) -> Iterator[None]:
    """Let the optimizer have other groups and another state for a moment, and no hooks."""
    attributes = dict(vars(optimizer))
    hooks = {key: OrderedDict() for key in ("_optimizer_step_pre_hooks", "_optimizer_step_post_hooks")}
    vars(optimizer).update(hooks, param_groups=groups, state=state)
    try:
        yield
    finally:
        vars(optimizer).clear()
        vars(optimizer).update(attributes)
