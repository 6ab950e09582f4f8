"""Making linear bottlenecks one layer deep."""

from typing import TypeVar

from torch import nn

from lightning_rank.nn.linear_bottleneck import LinearBottleneck

ModuleT = TypeVar("ModuleT", bound=nn.Module)


def collapse_linear_bottleneck(module: ModuleT) -> ModuleT:
    """Make every linear bottleneck in ``module`` one layer deep, in place, with the same outputs.

    The layers give way to the one of :meth:`LinearBottleneck.collapse`, ``linear_bottleneck.layers.0``, which holds
    their product; the bottleneck around it keeps its feature axis and its place. Do it when training
    is over; an optimizer made before still holds the old layers. Bottlenecks of depth 0 stay what they are. A
    ``state_dict`` saved afterwards loads into a module built with any depth, which is collapsed by it.

    Args:
        module: A module with one or more :class:`LinearBottleneck`.

    Returns:
        ``module`` itself.

    Raises:
        ValueError: There is no :class:`LinearBottleneck` in ``module``.

    Example:
        >>> model = nn.Sequential(nn.Linear(8, 4), LinearBottleneck(4, depth=8), nn.Linear(4, 8))
        >>> len(list(collapse_linear_bottleneck(model).parameters()))
        5
    """
    bottlenecks = [child for child in module.modules() if isinstance(child, LinearBottleneck)]
    if not bottlenecks:
        raise ValueError(f"module: expected a LinearBottleneck somewhere in {type(module).__name__}, found none")
    for bottleneck in bottlenecks:
        if bottleneck.depth > 0:
            bottleneck.become_one_layer(bottleneck.collapse())
    return module
