"""Which parameters train at a learning rate scaled by depth, and at which."""

import math
from collections.abc import Container
from dataclasses import dataclass
from itertools import chain, count
from typing import Any, Literal

from torch import Tensor, nn

from lightning_rank.functional.learning_rate import inverse_depth
from lightning_rank.nn._submodules import plain_name
from lightning_rank.nn.linear_bottleneck import LinearBottleneck

Multiplier = Literal["inverse_depth"] | float

#: Key of a param group that tells its multiplier; a group that has it is scaled already.
MULTIPLIER_KEY = "depth_multiplier"

#: Name of the only group of all that is not linear, if it has no other.
BASE = "base"


@dataclass(frozen=True)
class LinearGroup:
    """The parameters of one linear bottleneck, and their share of the learning rate.

    Attributes:
        name: Dotted name of the bottleneck in the module, as the group is named.
        depth: Its number of layers.
        multiplier: Its learning rate over that of the parameters around it.
        params: Its parameters, trainable or frozen.
    """

    name: str
    depth: int
    multiplier: float
    params: list[nn.Parameter]


def linear_groups(module: nn.Module, multiplier: Multiplier = "inverse_depth") -> list[LinearGroup]:
    """The linear bottlenecks in ``module``, each with its multiplier.

    Args:
        module: A module with one or more :class:`LinearBottleneck`.
        multiplier: ``"inverse_depth"`` for 1/depth of each, or one number for all.

    Returns:
        One group for each bottleneck, in the module's order; ``params`` is empty at depth 0.

    Raises:
        TypeError: ``multiplier`` is neither.
        ValueError: ``multiplier`` is not positive and finite; there is no bottleneck; or two bottlenecks share a
            parameter but not the multiplier.

    Example:
        >>> groups = linear_groups(nn.Sequential(nn.Linear(8, 4), LinearBottleneck(4, depth=8)))
        >>> groups[0].name, groups[0].multiplier, len(groups[0].params)
        ('1', 0.125, 8)
    """
    check_multiplier(multiplier)
    groups: list[LinearGroup] = []
    taken: dict[int, LinearGroup] = {}
    for name, child in module.named_modules():
        if not isinstance(child, LinearBottleneck):
            continue
        scale = inverse_depth(child.depth) if multiplier == "inverse_depth" else float(multiplier)
        group = LinearGroup(plain_name(name) or "linear_bottleneck", child.depth, scale, [])
        for parameter in child.parameters():
            owner = taken.setdefault(id(parameter), group)
            if owner.multiplier != scale:
                raise ValueError(
                    f"module: expected bottlenecks that share a parameter to share the multiplier, got "
                    f"{owner.multiplier:g} for {owner.name!r} and {scale:g} for {name!r}; give one multiplier for all"
                )
            if owner is group:
                group.params.append(parameter)
        groups.append(group)
    if not groups:
        raise ValueError(
            f"module: expected a LinearBottleneck somewhere in {type(module).__name__}, found none; add one with "
            "LinearBottleneckMixin or attach_linear_bottleneck"
        )
    return groups


def depth_scaled_param_groups(
    module: nn.Module,
    lr: float | Tensor,
    *,
    multiplier: Multiplier = "inverse_depth",
    name: str = BASE,
    **group_options: Any,
) -> list[dict[str, Any]]:
    r"""Param groups for an optimizer: the linear bottlenecks at ``lr / depth``, everything else at ``lr``.

    This is the explicit way, for use inside ``configure_optimizers``. The groups differ in ``lr`` from the start and a
    scheduler that scales learning rates keeps their ratio; one that sets them (``OneCycleLR``, ``eta_min`` or
    ``min_lr`` above zero) does not: :class:`lightning_rank.DepthScaledLR` keeps it under every scheduler. Use one or
    the other.

    Args:
        module: A module with one or more :class:`LinearBottleneck`.
        lr: Learning rate of everything else.
        multiplier: ``"inverse_depth"`` for 1/depth of each bottleneck, or one number for all.
        name: Of the group of everything else. Where it is not ``"base"``, those of the bottlenecks begin with it.
        group_options: Further options of every group, such as ``weight_decay``.

    Returns:
        Groups named ``"base"`` and after the bottlenecks, which together hold every trainable parameter once.

    Raises:
        TypeError: ``multiplier`` is neither a number nor ``"inverse_depth"``; ``params`` are among the options.
        ValueError: ``multiplier`` is not positive and finite; there is no bottleneck; or two bottlenecks share a
            parameter but not the multiplier.

    Source: Sun et al. 2021 (arXiv 2107.01301); the rule is derived in :func:`lightning_rank.functional.inverse_depth`.

    Example:
        >>> model = nn.Sequential(nn.Linear(8, 4), LinearBottleneck(4, depth=8), nn.Linear(4, 8))
        >>> groups = depth_scaled_param_groups(model, lr=1e-3)
        >>> [(group["name"], group["lr"], len(group["params"])) for group in groups]
        [('base', 0.001, 4), ('1', 0.000125, 8)]
    """
    if "params" in group_options:
        raise TypeError(
            "params: expected none, for they are those of module, got some; pass the submodule that has them"
        )
    linear = linear_groups(module, multiplier)
    scaled = {id(parameter) for group in linear for parameter in group.params}
    base = [p for p in module.parameters() if p.requires_grad and id(p) not in scaled]
    groups: list[dict[str, Any]] = [{**group_options, "params": base, "lr": lr, "name": name}]
    groups += [
        {
            **group_options,
            "params": [parameter for parameter in group.params if parameter.requires_grad],
            "lr": lr * group.multiplier,
            "name": linear_name(name, group.name, {name}),
            MULTIPLIER_KEY: group.multiplier,
        }
        for group in linear
    ]
    return [group for group in groups if group["params"]]


def linear_name(partner: str, bottleneck: str, taken: Container[Any]) -> str:
    """Name of a linear group: the bottleneck's beside ``"base"``, and after the partner's where it has another.

    Example:
        >>> linear_name("base", "encoder.0", {"base"}), linear_name("pg2", "encoder.0", {"pg1", "pg2"})
        ('encoder.0', 'pg2/encoder.0')
        >>> linear_name("base", "base", {"base"}), linear_name("pg1", "a", {"pg1", "pg1/a"})
        ('base/base', 'pg1/a/2')
    """
    full = f"{partner}/{bottleneck}"
    names = [bottleneck, full] if partner == BASE else [full]
    names = chain(names, (f"{full}/{number}" for number in count(2)))
    return next(name for name in names if name not in taken)


def check_multiplier(multiplier: Multiplier) -> None:
    """Refuse what is neither "inverse_depth" nor a positive finite number."""
    if multiplier == "inverse_depth":
        return
    if not isinstance(multiplier, int | float) or isinstance(multiplier, bool):
        raise TypeError(f"multiplier: expected 'inverse_depth' or a number, got {multiplier!r}")
    if not (math.isfinite(multiplier) and multiplier > 0):
        raise ValueError(f"multiplier: expected 'inverse_depth' or a positive finite number, got {multiplier!r}")
